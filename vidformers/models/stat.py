"""STAT: a convolutional stem, stages of shrinking attention on ever coarser grids, and temporal aggregation.

The paper leaves the layout to an appendix that was not published. Here it is MViT-B without its first stage, which
agrees with all the costs that the paper prints.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import groupby

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.core import SelfAttention
from vidformers.attention.joint import Joint
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.errors import require
from vidformers.layers.convolution import Conv
from vidformers.layers.embedding import normalise, position_init
from vidformers.layers.linear import Linear, glorot
from vidformers.layers.mlp import Mlp, gelu
from vidformers.layers.tokens import Noise, Tokens, add_branch, dropout
from vidformers.models.encoder import Block, Classifier, Encoder, StageSpec
from vidformers.models.pyramid import check_depth

CUBE, HALVE, HALVE_SPACE, KEEP = (3, 3, 3), (2, 2, 2), (1, 2, 2), (1, 1, 1)
# The rows of Table 5, each convolution as kernel, stride, and what its width goes into the stem's width. The inner
# widths are not in the paper; those of the default are 64, 96, 192. Five convolutions as printed leave a grid of 7 x 7
# and a quarter of the frames; 'same_grid' keeps the default's grid and adds two that do not stride.
STEMS = {
    (1, "same_grid"): (((3, 7, 7), (2, 4, 4), 1),),
    (3, "same_grid"): ((CUBE, HALVE, 3), (CUBE, HALVE_SPACE, 2), (CUBE, HALVE_SPACE, 1)),
    (5, "same_grid"): (
        (CUBE, HALVE, 3),
        (CUBE, HALVE_SPACE, 2),
        (CUBE, HALVE_SPACE, 1),
        (CUBE, KEEP, 1),
        (CUBE, KEEP, 1),
    ),
    (5, "literal"): (
        (CUBE, HALVE, 12),
        (CUBE, HALVE_SPACE, 8),
        (CUBE, HALVE_SPACE, 4),
        (CUBE, HALVE, 2),
        (CUBE, HALVE_SPACE, 1),
    ),
}


class Stem(nnx.Module):
    """Pixels (b t y x 3) -> overlapping patch tokens (b t y x d): 3-D convolutions with LN and GELU between them.

    Learned positions in space and in time are added; row 0 of the spatial table is the class tokens', one a frame.

    Raises:
        ConfigError: a row that `STEMS` does not have, a width too small for it, strides that do not divide the clip.
    """

    def __init__(
        self,
        width: int,
        *,
        frames: int,
        image_size: int,
        convolutions: int = 3,
        strides: str = "same_grid",
        mean,
        std,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        require(
            (convolutions, strides) in STEMS,
            f"model.stem_convs={convolutions} with model.stem_strides={strides!r} is none of "
            f"{', '.join(f'{n} {name}' for n, name in STEMS)}.",
        )
        kernels, steps, parts = zip(*STEMS[convolutions, strides], strict=True)
        in_time, in_space, _ = map(math.prod, zip(*steps, strict=True))
        require(
            frames % in_time == 0,
            f"model.frames={frames} must be a multiple of {in_time}, by which the stem divides it.",
        )
        require(
            image_size >= 1 and image_size % in_space == 0,
            f"model.image_size={image_size} must be a multiple of {in_space}, by which the stem divides it.",
        )
        require(width >= max(parts), f"model.width={width} is too small for a stem of {convolutions} convolutions.")
        self.shape = (frames, image_size, image_size, 3)
        self.grid = (frames // in_time, image_size // in_space, image_size // in_space)
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        widths = [width // part for part in parts]
        self.convolutions = nnx.List(
            Conv(
                before,
                after,
                kernel,
                strides=step,
                padding=[(size // 2, size // 2) for size in kernel],
                dtype=dtype,
                rngs=rngs,
            )
            for before, after, kernel, step in zip([3, *widths[:-1]], widths, kernels, steps, strict=True)
        )
        self.norms = nnx.List(nnx.LayerNorm(each, epsilon=1e-6, dtype=dtype, rngs=rngs) for each in widths[:-1])
        self.space = nnx.Param(position_init(rngs.params(), (1 + math.prod(self.grid[1:]), width)))
        self.time = nnx.Param(position_init(rngs.params(), (self.grid[0], width)))

    def __call__(self, video):
        x = self.convolutions[0](normalise(video, self.mean, self.std, self.dtype))
        for norm, convolution in zip(self.norms, self.convolutions[1:], strict=True):
            x = convolution(gelu(norm(x)))
        space = rearrange(self.space[1:], "(y x) d -> y x d", y=self.grid[1])
        return x + (space + self.time[:, None, None]).astype(self.dtype)

    def class_position(self):
        """(t d): where the class token of each frame stands."""
        return self.space[0] + self.time[...]


class WideningMlp(nnx.Module):
    """W_skip LN tokens + W_2 GELU(W_1 LN tokens): the MLP that ends a stage, to twice the width (MViT)."""

    def __init__(
        self, width: int, hidden: int, out_width: int, *, dropout: float = 0.0, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.dropout = dropout
        linear = partial(Linear, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.wide, self.out, self.skip = linear(width, hidden), linear(hidden, out_width), linear(width, out_width)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        branch, *inner = noise.split(3) if noise is not None else (None, None, None)
        tokens = Tokens(*map(self.norm, tokens))
        wide = [
            self.out(dropout(gelu(self.wide(x)), self.dropout, each)) for x, each in zip(tokens, inner, strict=True)
        ]
        return add_branch(Tokens(*map(self.skip, tokens)), *wide, self.dropout, branch)


class TemporalAggregation(nnx.Module):
    """The frames' class tokens (b t d) -> (b d): a learned token attends with them through standard blocks (l_ta)."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        compute = dict(dropout=dropout, dtype=dtype, rngs=rngs)
        self.token = nnx.Param(position_init(rngs.params(), (width,)))
        self.blocks = nnx.List(
            Block([SelfAttention(Joint(), width, heads, **compute), Mlp(width, mlp_ratio * width, **compute)])
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)

    def __call__(self, classes, key=None, index=None):
        tokens = Tokens(rearrange(classes, "b t d -> b t 1 1 d"), self.tokens(classes))
        noises = [None] * len(self.blocks)
        if key is not None:
            noises = Noise(key, jnp.zeros(())).split(len(self.blocks))
        for block, noise in zip(self.blocks, noises, strict=True):
            tokens = block(tokens, noise)
        return self.norm(tokens.class_tokens[:, 0])

    def tokens(self, classes):
        """The tokens (b 1 d) that read class tokens (b t d)."""
        return jnp.broadcast_to(self.token[...].astype(classes.dtype), (classes.shape[0], 1, classes.shape[-1]))


def stat(
    parts,
    *,
    depths: tuple[int, ...] = (2, 11, 2),
    window: int = 3,
    long_key: str = "class",
    stem_convs: int = 3,
    stem_strides: str = "same_grid",
    aggregation_layers: int = 1,
    rngs,
) -> Classifier:
    """STAT: shrinking temporal attention, one class token a frame, aggregated over time.

    `parts` give width and heads of the first stage, which double at each later one (192 and 2); depth is the sum of
    `depths`, the patch size the stride of the stem in space (8). A dictionary has the width of its stage.

    From stage to stage the grid is halved by the attention of the first block and the width doubled by the MLP of the
    block before. Keys and values are pooled to the grid of the last stage, and to twice that side where the grid is
    halved, as the stride acts on the grid before.

    Args:
        depths: blocks of each stage. With one in the last, nothing reads the patches on its grid.
        window: t_o, the frames around a query that it sees in short-term attention (Table 2); 1: none.
        long_key: what stands for a frame in long-term attention (Tables 1, 3): 'class', 'mean', or 'none'.
        stem_convs, stem_strides: a row of `STEMS` (Table 5). One convolution is MViT's stem: MViT's first stage, one
            block of half the width on twice the grid, comes before the `depths`.
        aggregation_layers: l_ta (Table 4); 0 takes the mean over the frames.
    Raises:
        ConfigError: an even window, an odd grid to be halved, strides that do not divide the clip, an unknown choice.
    """
    require(bool(depths) and min(depths) >= 1, f"model.depths={depths} must give each stage at least one block.")
    check_depth(parts, depths)
    parts.require_einsum_backend("STAT's attention")
    require(aggregation_layers >= 0, f"model.aggregation_layers={aggregation_layers} must be at least 0.")
    width, heads = parts.width, parts.heads
    if stem_convs == 1:
        require(
            width % 2 == heads % 2 == 0,
            f"model.stem_convs=1 halves model.width={width} and model.heads={heads}, which must be even.",
        )
        width, heads, depths = width // 2, heads // 2, (1, *depths)
    stem = Stem(
        width,
        frames=parts.frames,
        image_size=parts.image_size,
        convolutions=stem_convs,
        strides=stem_strides,
        mean=parts.mean,
        std=parts.std,
        dtype=parts.compute["dtype"],
        rngs=rngs,
    )
    stride = parts.image_size // stem.grid[1]
    require(parts.patch_size == stride, f"model.patch_size={parts.patch_size} must be {stride}, the stem's stride.")
    halvings = len(depths) - 1
    require(
        stem.grid[1] % 2**halvings == 0,
        f"model.image_size={parts.image_size} gives a grid of side {stem.grid[1]}, which the stages of "
        f"model.depths={depths} cannot halve {halvings} times.",
    )

    def block(level: int, first: bool, last: bool, rngs):
        """A block of the stage `level`, of which the first halves the grid and the last doubles the width."""
        at = sizes[level]
        attention = ShrinkingAttention(
            at.width,
            at.heads,
            kv_stride=2 ** (halvings - level),
            pool_queries=first,
            window=window,
            long_key=long_key,
            dictionary=at.make_dictionary(rngs),
            kernel=parts.kernel,
            masked=parts.masked,
            rngs=rngs,
            **parts.compute,
        )
        if not last:
            return Block([attention, at.mlp()(rngs=rngs)])
        return Block(
            [attention, WideningMlp(at.width, at.mlp_ratio * at.width, 2 * at.width, rngs=rngs, **parts.compute)]
        )

    sizes = [replace(parts, width=width << level, heads=heads << level) for level in range(len(depths))]
    kinds = [
        (level, level > 0 and i == 0, level < halvings and i == depth - 1)
        for level, depth in enumerate(depths)
        for i in range(depth)
    ]
    stages = [StageSpec(partial(block, *kind), len(list(run))) for kind, run in groupby(kinds)]
    encoder = Encoder(
        stem,
        stages,
        width=width,
        out_width=sizes[-1].width,
        class_per_frame=True,
        drop_path=parts.drop_path,
        remat=parts.remat,
        unroll=parts.unroll,
        rngs=rngs,
        **parts.compute,
    )
    readout = None
    if aggregation_layers:
        readout = TemporalAggregation(
            sizes[-1].width, sizes[-1].heads, aggregation_layers, mlp_ratio=parts.mlp_ratio, rngs=rngs, **parts.compute
        )
    return Classifier(encoder, readout, width=sizes[-1].width, num_classes=parts.num_classes, rngs=rngs)

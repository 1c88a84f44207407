"""STAT: shrinking temporal attention in stages on ever coarser grids, then temporal aggregation.

Paper: Li, Xiong, Han and Guo, "Shrinking Temporal Attention in Transformers for Video Action Recognition", AAAI 2022.

    stem: 3-D convolutions
    depths[0] x [ shrinking attention -> MLP ]       the last MLP of a stage doubles the width
    depths[1] x [ shrinking attention -> MLP ]       the first attention of a later stage halves the side of the grid
    depths[2] x [ shrinking attention -> MLP ]
    readout:  aggregation_layers x [ joint attention -> MLP ] on a learned token and the class tokens

Every frame of the stem's grid has a class token. The paper leaves the layout of the stages to an appendix that was not
published. Here it is MViT-B without its first stage, which agrees with all costs that the paper prints.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.core import SelfAttention
from vidformers.attention.joint import Joint
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.errors import multiples_near, require, require_range
from vidformers.layers.convolution import Conv
from vidformers.layers.embedding import normalise, unit_norm_init
from vidformers.layers.linear import Linear, glorot
from vidformers.layers.mlp import Mlp, activation_with_dropout, gelu
from vidformers.layers.tokens import LayerRng, Tokens, add_branch, split_rng, tokens_of_maps
from vidformers.models.config import MAX_DEPTH, ModelConfig, ModelTraits
from vidformers.models.encoder import Block, Classifier, Encoder, StageSpec
from vidformers.models.pyramid import check_depth

STAT = ModelTraits(defaults=dict(size="STAT", patch_size=8), frames_on_one_device=True)
CUBE, HALVE, HALVE_SPACE, KEEP = (3, 3, 3), (2, 2, 2), (1, 2, 2), (1, 1, 1)
# The rows of Table 5. Each convolution is (kernel, stride, divisor), and its width is the width of the stem over the
# divisor. The paper does not give the inner widths; those of the default are 64, 96 and 192. The five convolutions that
# the paper prints leave a grid of 7 x 7 and a quarter of the frames ('literal'). 'same_grid' keeps the grid of the
# default and adds two convolutions without stride.
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
    """3-D convolutions with LN and GELU between them: pixels (b t y x 3) -> patch tokens (b t n d), which overlap.

    Learned position embeddings in space and in time are added. Row 0 of the spatial one belongs to the class tokens.

    Args:
        width: d.
        frames, image_size: of a clip.
        convolutions, strides: a key of `STEMS`.
        mean, std: normalisation of the colour channels.
    Raises:
        ConfigError: an unknown key, a width too small for it, or strides that do not divide the clip.
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
            f"model.stem_convs={convolutions} with model.stem_strides={strides!r} is unknown. Use one of "
            f"{', '.join(f'{n} {name}' for n, name in STEMS)}.",
        )
        kernels, steps, divisors = zip(*STEMS[convolutions, strides], strict=True)
        time_stride, stride, _ = map(math.prod, zip(*steps, strict=True))
        require(
            frames % time_stride == 0,
            f"model.frames={frames} must be a multiple of {time_stride}, the stride of the stem in time. Set "
            f"model.frames to {multiples_near(time_stride, frames)}.",
        )
        require(
            width >= max(divisors),
            f"model.width={width} must be at least {max(divisors)} with model.stem_convs={convolutions}.",
        )
        self.shape, self.stride = (frames, image_size, image_size, 3), stride
        self.grid = (frames // time_stride, image_size // stride, image_size // stride)
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        widths = [width // divisor for divisor in divisors]
        padding = [[(size // 2, size // 2) for size in kernel] for kernel in kernels]
        conv = partial(Conv, dtype=dtype, rngs=rngs)
        self.convolutions = nnx.List(
            conv(inputs, outputs, kernels[i], strides=steps[i], padding=padding[i])
            for i, (inputs, outputs) in enumerate(pairwise([3, *widths]))
        )
        self.norms = nnx.List(nnx.LayerNorm(inner, epsilon=1e-6, dtype=dtype, rngs=rngs) for inner in widths[:-1])
        self.space = nnx.Param(unit_norm_init(rngs.params(), (1 + math.prod(self.grid[1:]), width)))
        self.time = nnx.Param(unit_norm_init(rngs.params(), (self.grid[0], width)))

    def __call__(self, video):
        x = self.convolutions[0](normalise(video, self.mean, self.std, self.dtype))
        for norm, convolution in zip(self.norms, self.convolutions[1:], strict=True):
            # On one axis, the frames are in the shape in which TPUs convolve them.
            frames = gelu(norm(x.reshape(-1, *x.shape[2:])))
            x = convolution(frames.reshape(x.shape))
        space = rearrange(self.space[1:], "(y x) d -> y x d", y=self.grid[1])
        return rearrange(x + (space + self.time[:, None, None]).astype(self.dtype), "b t y x d -> b t (y x) d")

    def class_position(self):
        """Returns the position embeddings (t d) of the class tokens, one per frame."""
        return self.space[0] + self.time[...]


class MeanEncoder(Encoder):
    """An encoder without class tokens, which returns the means of the normalised patches of frames (b t d).

    Zeros stand in place of class tokens. Nothing may attend to them.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, class_per_frame=True, **options)
        self.class_token = nnx.data(None)  # type: ignore[arg-type]

    def initial_class_tokens(self, patches):
        b, t, _, d = patches.shape
        return jnp.zeros((b, t, d), patches.dtype)

    def read(self, tokens: Tokens):
        return self.norm(tokens.patches).mean(axis=2, dtype=jnp.promote_types(self.dtype, jnp.float32))


class WideningMlp(nnx.Module):
    """W_skip LN tokens + W_2 GELU(W_1 LN tokens): the last MLP of a stage, to another width (MViT)."""

    def __init__(
        self, width: int, hidden: int, out_width: int, *, dropout: float = 0.0, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.dropout = dropout
        linear = partial(Linear, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.wide, self.out, self.skip = linear(width, hidden), linear(hidden, out_width), linear(width, out_width)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        branch_rng, *inner = split_rng(rng, 3)
        normalised = jax.tree.map(self.norm, tokens)
        wide, out, skip = (
            linear.for_several_calls(tokens.patches.dtype) for linear in (self.wide, self.out, self.skip)
        )
        branch = tuple(
            out(activation_with_dropout(gelu, wide(x), self.dropout, x_rng))
            for x, x_rng in zip((normalised.patches, normalised.class_tokens), inner, strict=True)
        )
        return add_branch(jax.tree.map(skip, normalised), branch, self.dropout, branch_rng)


class TemporalAggregation(nnx.Module):
    """A learned token attends to the class tokens of the frames: (b t d) -> (b d).

    Args:
        width, heads: d and h; h divides d.
        layers: l_ta, the number of standard blocks.
        backend: that of `SelfAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        mlp_ratio: int = 4,
        backend: str = "auto",
        dropout: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        compute = dict(dropout=dropout, dtype=dtype, rngs=rngs)
        self.token = nnx.Param(unit_norm_init(rngs.params(), (width,)))
        self.blocks = nnx.List(
            Block(
                [
                    SelfAttention(Joint(), width, heads, backend=backend, **compute),
                    Mlp(width, mlp_ratio * width, **compute),
                ]
            )
            for _ in range(layers)
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)

    def __call__(self, class_tokens, key=None, index=None):
        tokens = tokens_of_maps(rearrange(class_tokens, "b t d -> b t 1 1 d"), self.tokens(class_tokens))
        rng = None if key is None else LayerRng(key, jnp.zeros(()))
        for block, block_rng in zip(self.blocks, split_rng(rng, len(self.blocks)), strict=True):
            tokens = block(tokens, block_rng)
        return self.norm(tokens.class_tokens[:, 0])

    def tokens(self, class_tokens):
        """Returns the learned token (b 1 d) that attends to class tokens (b t d)."""
        b, _, d = class_tokens.shape
        return jnp.broadcast_to(self.token[...].astype(class_tokens.dtype), (b, 1, d))


def stat(
    config: ModelConfig,
    *,
    depths: tuple[int, ...] = (2, 11, 2),
    window: int = 3,
    long_key: str = "class",
    frame_token: str = "class",
    stem_convs: int = 3,
    stem_strides: str = "same_grid",
    aggregation_layers: int = 1,
    pool_norm: str = "keys",
    head_dropout: float = 0.0,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a STAT.

    The width and heads of the config are those of the first stage (192 and 2). They double at each later stage. The
    patch size is the stride of the stem in space (8). A dictionary has the width of its stage.

    Args:
        depths: blocks of each stage. Their sum is `config.depth`. With one block in the last stage, the patches on the
            grid of that stage do not affect the logits.
        window: t_o, the frames around a query whose patches short-term attention averages (Table 2); 1 is none.
        long_key: what represents a frame in long-term attention, 'class', 'mean' or 'none' (Tables 1, 3).
        frame_token: what represents a frame to the aggregation, its 'class' token, or the 'mean' of its patches in a
            model without class tokens, which is another reading of the first row of Table 3.
        stem_convs, stem_strides: a key of `STEMS` (Table 5). One convolution is the stem of MViT. Then the first stage
            of MViT, one block of half the width on a grid of twice the side, is put before the `depths`.
        aggregation_layers: l_ta (Table 4). With 0, the head takes the mean over the frames.
        pool_norm: 'keys', 'mvit' or 'none': what is normalised after pooling, see `ShrinkingAttention`.
        head_dropout: dropout rate of the input of the head, 0.5 in MViT.
    Raises:
        ConfigError: an even window, an odd grid to be halved, strides that do not divide the clip, or a wrong choice.
    """
    require(bool(depths) and min(depths) >= 1, f"model.depths={depths} must give each stage at least one block.")
    check_depth(config, depths)
    _check_frame_token(frame_token, long_key)
    require_range("model.aggregation_layers", aggregation_layers, 0, MAX_DEPTH)
    if stem_convs == 1:
        config, depths = _half_width(config), (1, *depths)
    stem = _stem(config, stem_convs, stem_strides, rngs)
    _check_grid(config, stem.stride, depths)
    levels = [replace(config, width=config.width << i, heads=config.heads << i) for i in range(len(depths))]
    width = levels[-1].width
    make_encoder = MeanEncoder if frame_token == "mean" else partial(Encoder, class_per_frame=True)
    encoder = make_encoder(
        stem,
        _stages(levels, depths, window=window, long_key=long_key, pool_norm=pool_norm),
        width=config.width,
        out_width=width,
        drop_path=config.drop_path,
        remat=config.remat,
        unroll=config.unroll,
        rngs=rngs,
        **config.sublayer_options,
    )
    readout = _aggregation(levels[-1], aggregation_layers, rngs) if aggregation_layers else None
    return Classifier(
        encoder, readout, width=width, num_classes=config.num_classes, head_dropout=head_dropout, rngs=rngs
    )


def _check_frame_token(frame_token: str, long_key: str) -> None:
    require(frame_token in ("class", "mean"), f"model.frame_token={frame_token!r} must be class or mean.")
    require(
        frame_token == "class" or long_key != "class",
        "model.frame_token=mean is a model without class tokens. Set model.long_key=mean or none.",
    )


def _aggregation(config: ModelConfig, layers: int, rngs: nnx.Rngs) -> TemporalAggregation:
    return TemporalAggregation(
        config.width,
        config.heads,
        layers,
        mlp_ratio=config.mlp_ratio,
        backend=config.backend,
        rngs=rngs,
        **config.sublayer_options,
    )


def _half_width(config: ModelConfig) -> ModelConfig:
    width, heads = config.width, config.heads
    require(
        width % 2 == heads % 2 == 0,
        f"model.stem_convs=1 halves model.width={width} and model.heads={heads}. Both must be even: set "
        f"model.width={width * 2} and model.heads={heads * 2}.",
    )
    return replace(config, width=width // 2, heads=heads // 2)


def _stem(config: ModelConfig, convolutions: int, strides: str, rngs: nnx.Rngs) -> Stem:
    return Stem(
        config.width,
        frames=config.frames,
        image_size=config.image_size,
        convolutions=convolutions,
        strides=strides,
        mean=config.mean,
        std=config.std,
        dtype=config.sublayer_options["dtype"],
        rngs=rngs,
    )


def _check_grid(config: ModelConfig, stride: int, depths: Sequence[int]) -> None:
    require(
        config.patch_size == stride,
        f"model.patch_size={config.patch_size} must be {stride}, the stride of the stem in space.",
    )
    halvings = len(depths) - 1
    unit = stride * 2**halvings
    require(
        config.image_size >= 1 and config.image_size % unit == 0,
        f"model.image_size={config.image_size} must be a multiple of {unit}: the stages of model.depths={depths} halve "
        f"the grid of patches of model.patch_size={stride} {halvings} times. Set model.image_size to "
        f"{multiples_near(unit, config.image_size)}.",
    )


def _stages(levels: Sequence[ModelConfig], depths: Sequence[int], **options) -> list[StageSpec]:
    """Returns the specs of the stages, cut where the first or the last block of a stage differs from the others.

    Keys and values are pooled to the grid of the last stage. Where the attention halves the grid of its queries, they
    are pooled to twice that side, since their stride acts on the grid before. `options` are those of every
    `ShrinkingAttention`.
    """
    last_level = len(levels) - 1

    def block(level: int, first: bool, last: bool, rngs: nnx.Rngs) -> Block:
        """Makes a block. The `first` of a stage halves the grid, the `last` doubles the width."""
        config = levels[level]
        attention = ShrinkingAttention(
            config.width,
            config.heads,
            kv_stride=2 ** (last_level - level),
            pool_queries=first,
            **options,
            dictionary=config.make_dictionary(rngs),
            kernel=config.kernel,
            backend=config.backend,
            masked=config.masked,
            rngs=rngs,
            **config.sublayer_options,
        )
        if not last:
            return Block([attention, config.mlp()(rngs=rngs)])
        hidden = config.mlp_ratio * config.width
        return Block(
            [attention, WideningMlp(config.width, hidden, 2 * config.width, rngs=rngs, **config.sublayer_options)]
        )

    kinds = [
        (level, level > 0 and i == 0, level < last_level and i == depth - 1)
        for level, depth in enumerate(depths)
        for i in range(depth)
    ]
    return [StageSpec(partial(block, *kind), len(list(blocks))) for kind, blocks in groupby(kinds)]

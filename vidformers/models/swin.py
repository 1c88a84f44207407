"""Video Swin: attention in shifted 3-D windows, in stages on ever coarser grids, with HaViT's dictionary as an option.

Papers: Liu et al., "Video Swin Transformer", arXiv:2106.13230, 2021; the code follows torchvision's `swin3d_t`.
Li et al., "HaViT", 2022, Table 7, adds the dictionary.

    tubelet embedding
    depths[0]/2 x [ window attention -> MLP -> shifted window attention -> MLP ]
    patch merging: half the side, twice the width
    depths[1]/2 x [ ... ]       and so on

There is no class token: the head takes the mean over the patches of the last stage. The two kinds of blocks alternate,
so a scan runs them as pairs, and stochastic depth grows from pair to pair.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.errors import require
from vidformers.layers.embedding import check_patches
from vidformers.layers.linear import Linear, glorot, square_init
from vidformers.layers.tokens import Tokens
from vidformers.models.config import ModelConfig, ModelTraits
from vidformers.models.encoder import Classifier
from vidformers.models.pyramid import NORM_EPSILON, check_depth, pyramid
from vidformers.parallel.activations import has_context
from vidformers.parallel.target import target_platform

SWIN = ModelTraits(defaults=dict(size="Swin-T", patch_size=4))


class TubeletEmbedding(nnx.Module):
    """LN E x: pixels (b t y x 3) -> patches (b t y x d), each of a square in `frames` consecutive frames."""

    def __init__(self, width: int, *, frames: int, patch_size: int, dtype=jnp.float32, rngs: nnx.Rngs):
        self.frames, self.patch_size = frames, patch_size
        self.patch = Linear(3 * frames * patch_size**2, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, video):
        assert self.patch.bias is not None
        dtype, side = video.dtype, video.shape[3]
        sizes = dict(r=self.frames, p=self.patch_size, q=self.patch_size)
        if target_platform() != "tpu":
            return self.norm(self.patch(rearrange(video, "b (t r) (y p) (x q) c -> b t y x (r p q c)", **sizes)))
        # TPUs store a row of pixels along a tile. A product with the identity, whose output has one axis for the patch
        # and one for the pixel in the patch, takes a tenth of the time of moving every fourth pixel of a row.
        identity = jnp.eye(side, dtype=dtype).reshape(side, -1, self.patch_size)
        columns = jnp.einsum("btyxc,xzq->btcyqz", video, identity, precision="highest")
        pixels = rearrange(columns, "b (t r) c (y p) q x -> b t r c y p q x", r=self.frames, p=self.patch_size)
        kernel = rearrange(self.patch.kernel[...].astype(dtype), "(r p q c) d -> r p q c d", **sizes)
        patches = jnp.einsum("btrcypqx,rpqcd->btyxd", pixels, kernel) + self.patch.bias[...].astype(dtype)
        return self.norm(patches)


class PatchMerging(nnx.Module):
    """W LN of 2 x 2 concatenated patches of a frame: (b t y x d) -> (b t y/2 x/2 2d). Odd grids are padded."""

    def __init__(self, width: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        axes = (2, 4, 6)  # j, i and d of `__call__`
        self.norm = nnx.LayerNorm(
            4 * width, epsilon=NORM_EPSILON, reduction_axes=axes, feature_axes=axes, dtype=dtype, rngs=rngs
        )
        self.out = Linear(4 * width, 2 * width, use_bias=False, kernel_init=glorot, dtype=dtype, rngs=rngs)

    def __call__(self, patches):
        y, x = patches.shape[2:4]
        patches = jnp.pad(patches, [(0, 0), (0, 0), (0, y % 2), (0, x % 2), (0, 0)])
        # The four patches are not concatenated, and frames come before d: TPUs store the last two axes in tiles, and
        # move the rest of the axes without splitting tiles (benchmarks/NOTES.md).
        squares = self.norm(rearrange(patches, "b t (y i) (x j) d -> b x j y i t d", i=2, j=2))
        kernel = rearrange(self.out.kernel[...].astype(squares.dtype), "(j i d) e -> j i d e", j=2, i=2)
        return jnp.einsum("bxjyitd,jide->btyxe", squares, kernel)


def swin(
    config: ModelConfig,
    *,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    window: tuple[int, int, int] = (8, 7, 7),
    patch_frames: int = 2,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a Video Swin.

    The width and heads of the config are those of the first stage (Swin-T: 96 and 3). They double at each later stage.
    A dictionary has the width of its stage.

    Args:
        depths: blocks of each stage, even numbers. Their sum is `config.depth`.
        window: (t, y, x) of a window in patches.
        patch_frames: frames in a patch. 1 is HaViT's variant with patches of one frame.
    Raises:
        ConfigError: a patch that does not divide the clip, an odd depth, a window below 1, or a kernel other than
            softmax, since the others take no position bias.
    """
    _check(config, depths, patch_frames)
    levels = [replace(config, width=config.width << i, heads=config.heads << i) for i in range(len(depths))]
    dtype = config.sublayer_options["dtype"]
    embeddings = [
        TubeletEmbedding(config.width, frames=patch_frames, patch_size=config.patch_size, dtype=dtype, rngs=rngs),
        *(PatchMerging(level.width, dtype=dtype, rngs=rngs) for level in levels[:-1]),
    ]
    stages = []
    for level, depth in zip(levels, depths, strict=True):
        whole, shifted = (_window_attention(level, window, shifted) for shifted in (False, True))
        mlp = level.mlp(norm_epsilon=NORM_EPSILON)
        stages.append(level.stage(depth // 2, whole, mlp, shifted, mlp))
    arrange = partial(_by_window, window=tuple(window))
    return pyramid(config, embeddings, stages, width=levels[-1].width, arrange=arrange, rngs=rngs)


def _by_window(tokens: Tokens, window) -> Tokens:
    """Returns the tokens by window where this pays: on TPUs, if the windows divide the grid.

    A stage then moves patches for shifted windows only, and not for whole ones.
    """
    window = tuple(map(min, tokens.grid, window))
    if target_platform() != "tpu" or has_context() or any(n % w for n, w in zip(tokens.grid, window, strict=True)):
        return tokens
    return tokens.by_window(window)


def _check(config: ModelConfig, depths, patch_frames: int) -> None:
    require(
        bool(depths) and all(depth >= 2 and depth % 2 == 0 for depth in depths),
        f"model.depths={tuple(depths)} must be even numbers, because whole and shifted windows alternate. Set "
        f"model.depths={tuple(max(depth + depth % 2, 2) for depth in depths) or (2,)}, and model.depth to their sum.",
    )
    check_depth(config, depths)
    check_patches(config.image_size, config.patch_size, config.frames, patch_frames)


def _window_attention(level: ModelConfig, window, shifted: bool) -> Callable[..., ShiftedWindowAttention]:
    def make(rngs: nnx.Rngs) -> ShiftedWindowAttention:
        return ShiftedWindowAttention(
            level.width,
            level.heads,
            window=window,
            shifted=shifted,
            dictionary=level.make_dictionary(rngs),
            kernel=level.kernel,
            backend=level.backend,
            masked=level.masked,
            rngs=rngs,
            **level.sublayer_options,
        )

    return make

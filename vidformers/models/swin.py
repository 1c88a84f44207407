"""Video Swin: attention in windows that shift, a host of HaViT's dictionary."""

from dataclasses import replace

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.errors import require
from vidformers.layers.linear import Linear, glorot, square_init
from vidformers.models.encoder import Classifier
from vidformers.models.pyramid import NORM_EPSILON, check_depth, pyramid


class TubeletEmbedding(nnx.Module):
    """Pixels (b t y x 3) -> LN E x (b t y x d), a token for every `frames` frames of a square patch."""

    def __init__(self, width: int, *, frames: int, patch_size: int, dtype=jnp.float32, rngs: nnx.Rngs):
        self.frames, self.patch_size = frames, patch_size
        self.patch = Linear(3 * frames * patch_size**2, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, video):
        patches = rearrange(
            video, "b (t r) (y p) (x q) c -> b t y x (r p q c)", r=self.frames, p=self.patch_size, q=self.patch_size
        )
        return self.norm(self.patch(patches))


class PatchMerging(nnx.Module):
    """Patches (b t y x d) -> W LN of each 2 x 2 of a frame side by side, (b t y/2 x/2 2d); odd grids are padded."""

    def __init__(self, width: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(4 * width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.out = Linear(4 * width, 2 * width, use_bias=False, kernel_init=glorot, dtype=dtype, rngs=rngs)

    def __call__(self, patches):
        y, x = patches.shape[2:4]
        patches = jnp.pad(patches, [(0, 0), (0, 0), (0, y % 2), (0, x % 2), (0, 0)])
        return self.out(self.norm(rearrange(patches, "b t (y i) (x j) d -> b t y x (j i d)", i=2, j=2)))


def swin(
    parts,
    *,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    window: tuple[int, int, int] = (8, 7, 7),
    patch_frames: int = 2,
    rngs,
) -> Classifier:
    """Video Swin, a host of HaViT's dictionary: attention in windows, every other block's shifted, no class token.

    `parts` give width and heads of the first stage, which double at each later one (Swin-T: 96 and 3); depth is
    the sum of `depths`. A dictionary has the width of its stage. Two blocks, whole windows and shifted ones, are
    scanned as one, and stochastic depth grows from pair to pair.

    Args:
        depths: blocks of each stage, even numbers.
        window: (t, y, x) in patches.
        patch_frames: frames in a patch; 1 is HaViT's frame by frame.
    Raises:
        ConfigError: a patch that does not divide the clip, an odd depth, an impossible window, a kernel that takes no
            bias.
    """
    require(
        bool(depths) and all(depth >= 2 and depth % 2 == 0 for depth in depths),
        f"model.depths={tuple(depths)} must be even numbers: whole and shifted windows alternate.",
    )
    check_depth(parts, depths)
    parts.require_einsum_backend("Swin's window attention")
    require(
        parts.patch_size >= 1 and parts.image_size > 0 and parts.image_size % parts.patch_size == 0,
        f"model.patch_size={parts.patch_size} must divide model.image_size={parts.image_size}.",
    )
    require(
        patch_frames >= 1 and parts.frames % patch_frames == 0,
        f"model.patch_frames={patch_frames} must divide model.frames={parts.frames}.",
    )
    dtype, stages, embeddings = parts.compute["dtype"], [], []
    for i, depth in enumerate(depths):
        own = replace(parts, width=parts.width * 2**i, heads=parts.heads * 2**i)

        def attention(shifted, own=own):
            def make(rngs):
                return ShiftedWindowAttention(
                    own.width,
                    own.heads,
                    window=window,
                    shifted=shifted,
                    dictionary=own.make_dictionary(rngs),
                    kernel=own.kernel,
                    masked=own.masked,
                    rngs=rngs,
                    **own.compute,
                )

            return make

        mlp = own.mlp(norm_epsilon=NORM_EPSILON)
        stages.append(own.stage(depth // 2, attention(False), mlp, attention(True), mlp))
        embeddings.append(
            PatchMerging(own.width // 2, dtype=dtype, rngs=rngs)
            if i
            else TubeletEmbedding(own.width, frames=patch_frames, patch_size=parts.patch_size, dtype=dtype, rngs=rngs)
        )
    return pyramid(parts, embeddings, stages, width=own.width, rngs=rngs)

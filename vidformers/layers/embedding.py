"""From pixels to patch tokens: normalisation, patch projection, positions in space and time."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init


def position_init(key, shape, dtype=jnp.float32):
    """Normal with deviation 1/sqrt(d): a table starts as strong in a narrow model as in a wide one. With a fixed 0.02
    narrow models hardly see where and when a patch is, and take long to find motion."""
    return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5


def normalise(video, mean, std, dtype):
    """Pixels of `dtype`: uint8 as (x / 255 - mean) / std, here and so on the device; floats are normalised already."""
    if video.dtype == jnp.uint8:
        video = (video.astype(dtype) / 255 - jnp.array(mean)) / jnp.array(std)
    return video.astype(dtype)


class Embedding(nnx.Module):
    """Pixels (b t y x 3) -> patch tokens (b t y x d): z = E x + e_space + e_time (MEViT eq. 1, e separable).

    Row 0 of the spatial table belongs to the class token. `temporal` is the initialiser of a table added to patches
    alone, as TimeSformer does; with None there is no table, and the order of frames is unknown to the tokens.

    Args:
        patch_frames: frames in a patch; with more than one, t of the tokens is as many times less (ViViT's tubelets).
        positions: 'separate' tables of space and time, or a 'joint' one of both, (1 + t y x, d), as ViViT has it.
    Raises:
        ConfigError: the patch does not divide the clip, or an unknown choice of positions.
    """

    def __init__(
        self,
        width: int,
        *,
        frames: int,
        image_size: int,
        patch_size: int,
        temporal,
        mean,
        std,
        patch_frames: int = 1,
        positions: str = "separate",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        require(
            patch_size >= 1 and image_size % patch_size == 0 and image_size > 0,
            f"model.patch_size={patch_size} must divide model.image_size={image_size}.",
        )
        require(
            patch_frames >= 1 and frames % patch_frames == 0,
            f"model.patch_frames={patch_frames} must divide model.frames={frames}.",
        )
        require(positions in ("separate", "joint"), f"model.positions={positions!r} must be separate or joint.")
        side, self.joint = image_size // patch_size, positions == "joint"
        self.shape, self.patch_size, self.patch_frames = (frames, image_size, image_size, 3), patch_size, patch_frames
        self.grid = (frames // patch_frames, side, side)
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        self.patch = Linear(3 * patch_frames * patch_size**2, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        places = side**2 * (self.grid[0] if self.joint else 1)
        self.space = nnx.Param(position_init(rngs.params(), (1 + places, width)))
        self.time = nnx.data(None)
        if temporal is not None and not self.joint:
            self.time = nnx.Param(temporal(rngs.params(), (self.grid[0], width)))

    def __call__(self, video):
        video = normalise(video, self.mean, self.std, self.dtype)
        patches = rearrange(
            video,
            "b (t r) (y p) (x q) c -> b t y x (r p q c)",
            r=self.patch_frames,
            p=self.patch_size,
            q=self.patch_size,
        )
        patches = self.patch(patches)
        _, y, x = self.grid
        patches += rearrange(self.space[1:], "(t y x) d -> t y x d", y=y, x=x).astype(self.dtype)
        if self.time is not None:
            patches += self.time[:, None, None].astype(self.dtype)
        return patches

    def class_position(self):
        """(d): where the class token stands."""
        return self.space[0]

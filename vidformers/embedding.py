"""From pixels to patch tokens: normalisation, patch projection, positions in space and time."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.core import square_init
from vidformers.errors import require


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

    Raises:
        ConfigError: the patch does not divide the image.
    """

    def __init__(self, width: int, *, frames: int, image_size: int, patch_size: int, temporal, mean, std,
                 dtype=jnp.float32, rngs: nnx.Rngs):
        require(patch_size >= 1 and image_size % patch_size == 0 and image_size > 0,
                f"model.patch_size={patch_size} must divide model.image_size={image_size}.")
        side = image_size // patch_size
        self.shape, self.patch_size = (frames, image_size, image_size, 3), patch_size
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        self.patch = nnx.Linear(3 * patch_size**2, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.space = nnx.Param(position_init(rngs.params(), (1 + side**2, width)))
        self.time = nnx.data(None) if temporal is None else nnx.Param(temporal(rngs.params(), (frames, width)))

    def __call__(self, video):
        video = normalise(video, self.mean, self.std, self.dtype)
        patches = rearrange(video, "b t (y p) (x q) c -> b t y x (p q c)",
                            p=self.patch_size, q=self.patch_size)
        patches = self.patch(patches)
        side = patches.shape[2]
        patches += rearrange(self.space[1:], "(y x) d -> y x d", y=side).astype(self.dtype)
        if self.time is not None:
            patches += self.time[:, None, None].astype(self.dtype)
        return patches

    def class_position(self):
        """(d): where the class token stands."""
        return self.space[0]

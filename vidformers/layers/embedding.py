"""The embedding of pixels as patch tokens: normalisation, patch projection, position embeddings in space and time."""

import warnings

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.errors import divisors_near, multiples_near, require
from vidformers.layers.linear import Linear, square_init

_has_warned = False  # `warn_of_unit_range` warns once


def unit_norm_init(key, shape, dtype=jnp.float32):
    """Initialises class tokens and position embeddings (... d): normal values with standard deviation 1/sqrt(d).

    The expected squared norm of a row is then 1 at any width. With a fixed 0.02, positions are weak in narrow models,
    which then take long to learn motion.
    """
    return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5


def normalise(video, mean, std, dtype):
    """Returns pixels (... c) in `dtype`: (x / 255 - mean) / std for uint8 pixels. Floats count as normalised already.

    Raises:
        ConfigError: the pixels have another type.
    """
    require(
        video.dtype == jnp.uint8 or jnp.issubdtype(video.dtype, jnp.floating),
        f"Pixels must be uint8, or floats that are normalised already, but are {video.dtype}.",
    )
    if video.dtype == jnp.uint8:
        video = (video.astype(dtype) / 255 - jnp.array(mean)) / jnp.array(std)
    return video.astype(dtype)


def warn_of_unit_range(video) -> None:
    """Warns, once, of float pixels that all lie from 0 to 1: they were scaled, but probably not normalised.

    Only values that are known are looked at, not those of a function that is traced.
    """
    global _has_warned
    if _has_warned or isinstance(video, jax.core.Tracer) or not jnp.issubdtype(video.dtype, jnp.floating):
        return
    if video.size and 0 <= video.min() and video.max() <= 1:
        _has_warned = True
        warnings.warn(
            "All pixels of the video are floats from 0 to 1. Floats count as normalised by the mean and the standard "
            "deviation of the model. Pass uint8 pixels from 0 to 255, which the model normalises itself.",
            stacklevel=4,  # the caller of the model
        )


def check_patches(image_size: int, patch_size: int, frames: int, patch_frames: int) -> None:
    """Raises ConfigError unless patches of `patch_frames` x `patch_size` x `patch_size` fill a clip."""
    for whole, length, part, patch in (
        ("image_size", image_size, "patch_size", patch_size),
        ("frames", frames, "patch_frames", patch_frames),
    ):
        require(length >= 1, f"model.{whole}={length} must be at least 1.")
        require(patch >= 1, f"model.{part}={patch} must be at least 1.")
        require(
            length % patch == 0,
            f"model.{part}={patch} does not divide model.{whole}={length}. Set model.{part} to "
            f"{divisors_near(length, patch)}, or model.{whole} to {multiples_near(patch, length)}.",
        )


class Embedding(nnx.Module):
    """Maps pixels (b t y x 3) to patch tokens (b t n d): z = E x + e_space + e_time (MEViT eq. 1, e separable).

    Args:
        width: d.
        frames: frames of a clip.
        image_size: height and width of a frame in pixels.
        patch_size: height and width of a patch in pixels.
        temporal_init: initialiser of the temporal position embedding (t, d), which is added to patches but not to class
            tokens, as in TimeSformer. None: no such embedding, so that tokens do not depend on the order of frames.
        mean: of each channel, for uint8 pixels.
        std: of each channel, for uint8 pixels.
        patch_frames: frames of a patch, r; tokens then have t / r frames (ViViT's tubelets).
        positions: 'separate' embeddings (1 + y x, d) in space and (t, d) in time, or one 'joint' embedding
            (1 + t y x, d), as in ViViT. Row 0 of the spatial or joint embedding belongs to the class token.

    Raises:
        ConfigError: the patch does not divide the clip, or `positions` is unknown.
    """

    def __init__(
        self,
        width: int,
        *,
        frames: int,
        image_size: int,
        patch_size: int,
        temporal_init,
        mean,
        std,
        patch_frames: int = 1,
        positions: str = "separate",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_patches(image_size, patch_size, frames, patch_frames)
        require(positions in ("separate", "joint"), f"model.positions={positions!r} is unknown. Use separate or joint.")
        side, self.joint = image_size // patch_size, positions == "joint"
        self.shape, self.patch_size, self.patch_frames = (frames, image_size, image_size, 3), patch_size, patch_frames
        self.grid = (frames // patch_frames, side, side)
        self.mean, self.std, self.dtype = tuple(mean), tuple(std), dtype
        self.patch = Linear(3 * patch_frames * patch_size**2, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        num_positions = side**2 * (self.grid[0] if self.joint else 1)
        self.space = nnx.Param(unit_norm_init(rngs.params(), (1 + num_positions, width)))
        self.time = nnx.data(None)
        if temporal_init is not None and not self.joint:
            self.time = nnx.Param(temporal_init(rngs.params(), (self.grid[0], width)))

    def __call__(self, video):
        # Moved before they are normalised: uint8 pixels have half of the bytes. Without the barrier XLA converts them
        # first on TPUs, and moves them five times as slowly (benchmarks/NOTES.md).
        pixels = rearrange(
            video,
            "b (t r) (y p) (x q) c -> b t (y x) (r p q c)",
            r=self.patch_frames,
            p=self.patch_size,
            q=self.patch_size,
        )
        pixels, per_patch = jax.lax.optimization_barrier(pixels), pixels.shape[-1] // 3
        patches = self.patch(normalise(pixels, self.mean * per_patch, self.std * per_patch, self.dtype))
        # Added in float32 or wider, so that their gradients, sums over clips and frames, are too.
        positions = rearrange(self.space[1:], "(t n) d -> t n d", n=patches.shape[2])
        if self.time is not None:
            positions = positions + self.time[:, None]
        return (patches.astype(jnp.promote_types(self.dtype, jnp.float32)) + positions).astype(self.dtype)

    def class_position(self):
        """Returns the position embedding (d) of the class token."""
        return self.space[0]

"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of clips, on the device."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange

from vidformers.errors import require


@dataclass(frozen=True)
class Mixing:
    """Each clip mixed with another of the batch, in a share of its own drawn for the clip, one for all its frames.

    Mixup blends the two clips everywhere; CutMix puts the partner into a box, the same in every frame. The targets
    are blended in the shares that the pixels have.

    Args:
        mixup, cutmix: a of the distribution Beta(a, a) of the share that a clip keeps; 0 leaves the method out.
        probability: of a clip being mixed at all.
        switch: probability of CutMix where both methods are on.

    Raises:
        ConfigError: one of them is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"train.{name}={value} must be a number of at least 0.")
        for name, value in (("mix_probability", self.probability), ("mix_switch", self.switch)):
            require(0 <= value <= 1, f"train.{name}={value} must be from 0 to 1.")

    @property
    def active(self) -> bool:
        """Whether anything is mixed: without it, callers spare themselves the partner's transfer."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, video, targets, mask, key):
        """Mixes row i with row i - b // 2, counted around the batch.

        Batches are drawn at random, so a fixed partner is a random one, and it costs devices one exchange of rows
        where a drawn one would gather the whole batch on each. Neighbours, which may be copies of one video, stay
        apart.

        Args:
            video: (b t y x c) uint8, or floats.
            targets: (b n) float, soft: label smoothing is in them already.
            mask: (b), 0 for a row without data: it is left as it is, and so is the row that it would go into.
            key: of the draws, which depend on it and on the place in the batch alone.

        Returns:
            The video, of the dtype it had (mixed in float32; uint8 is rounded to the nearest level), and the targets.
        """
        if not self.active:
            return video, targets
        share, weight = self._draw(key, video.shape[0], *video.shape[2:4])
        valid = (mask > 0) & (_partner(mask) > 0)
        share = jnp.where(valid, share, 0)[:, None]
        weight = rearrange(jnp.where(valid[:, None, None], weight, 0), "b y x -> b 1 y x 1")
        own, other = video.astype(jnp.float32), _partner(video).astype(jnp.float32)
        mixed = own + weight * (other - own)
        if video.dtype == jnp.uint8:
            mixed = jnp.round(mixed)
        # Chosen, not multiplied by 0: pixels that do not count may be anything, NaN included.
        mixed = jnp.where(weight > 0, mixed, own).astype(video.dtype)
        return mixed, targets + share * (_partner(targets) - targets)

    def _draw(self, key, rows: int, height: int, width: int):
        """Shares (b) and weights (b y x) of the partner; the first is the mean of the second over the frame."""
        method, amount, applied, down, across = jax.random.split(key, 5)
        switch = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = jax.random.uniform(method, (rows,)) < switch
        strength = jnp.where(cut, self.cutmix, self.mixup)
        share = jax.random.beta(amount, strength, strength)
        share = jnp.where(jax.random.uniform(applied, (rows,)) < self.probability, share, 0)
        box = _span(down, share, height)[:, :, None] & _span(across, share, width)[:, None]
        weight = jnp.where(cut[:, None, None], box, share[:, None, None])
        return jnp.where(cut, box.sum((1, 2)) / (height * width), share), weight


def _span(key, share, pixels: int):
    """(b pixels) of bool: a box of that share of the frame along one axis, around any pixel, cut off at the ends."""
    length = jnp.floor(jnp.sqrt(share) * pixels)
    first = jax.random.randint(key, share.shape, 0, pixels) - length // 2
    place = jnp.arange(pixels) - first[:, None]
    return (place >= 0) & (place < length[:, None])


def _partner(x):
    return jnp.roll(x, x.shape[0] // 2, axis=0)

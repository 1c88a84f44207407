"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of clips, on the device."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange

from vidformers.errors import require


@dataclass(frozen=True)
class Mixing:
    """Mixes each clip with a partner from the same batch. The partner's share is drawn per clip, for all its frames.

    Mixup blends the two clips at every pixel. CutMix replaces a box, the same in every frame, by the partner's pixels.
    The targets are blended in the same shares as the pixels.

    Args:
        mixup, cutmix: the a of the distribution Beta(a, a), from which the share of the partner is drawn. 0 turns the
            method off.
        probability: the probability that a clip is mixed at all.
        switch: the probability of CutMix if both methods are on.

    Raises:
        ConfigError: a field is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"train.{name}={value} must be a finite number of at least 0.")
        for name, value in (("mix_probability", self.probability), ("mix_switch", self.switch)):
            require(0 <= value <= 1, f"train.{name}={value} must be from 0 to 1.")

    @property
    def active(self) -> bool:
        """Whether any clip can be mixed. If not, the exchange of rows between devices is skipped."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __call__(self, video, targets, mask, key):
        """Mixes row i with row i - b // 2, modulo b.

        Batches are drawn at random, so a partner at a fixed distance is a random clip. It costs one exchange of rows
        between devices, whereas a random permutation would all-gather the batch on every device. Neighbouring rows,
        which may be clips of one video (data.repeats), are never mixed.

        Args:
            video: (b t y x c) uint8, or floats.
            targets: a tree of floats (b n), such as targets with label smoothing already applied. Each array is mixed.
            mask: (b), 0 for a row without data. Such a row is not mixed, and neither is the row whose partner it is.
            key: the random key. The random numbers of a row depend only on the key and on the row number.

        Returns:
            The video in its own dtype (mixed in float32; uint8 is rounded to the nearest level) and the targets.
        """
        if not self.active:
            return video, targets
        share, weight = self._draw(key, video.shape[0], *video.shape[2:4])
        valid = (mask > 0) & (_partner(mask) > 0)
        share = jnp.where(valid, share, 0)[:, None]
        weight = rearrange(jnp.where(valid[:, None, None], weight, 0), "b y x -> b 1 y x 1")
        clip, partner = video.astype(jnp.float32), _partner(video).astype(jnp.float32)
        mixed = clip + weight * (partner - clip)
        if video.dtype == jnp.uint8:
            mixed = jnp.round(mixed)
        # Select instead of multiplying by 0: pixels of masked rows may be NaN.
        mixed = jnp.where(weight > 0, mixed, clip).astype(video.dtype)
        return mixed, jax.tree.map(lambda x: x + share * (_partner(x) - x), targets)

    def _draw(self, key, rows: int, height: int, width: int):
        """Draws the partner's share (b) and weight (b y x). The share is the mean of the weight over the frame."""
        method_key, share_key, applied_key, y_key, x_key = jax.random.split(key, 5)
        switch = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        is_cutmix = jax.random.uniform(method_key, (rows,)) < switch
        strength = jnp.where(is_cutmix, self.cutmix, self.mixup)
        share = jax.random.beta(share_key, strength, strength)
        share = jnp.where(jax.random.uniform(applied_key, (rows,)) < self.probability, share, 0)
        box = _span(y_key, share, height)[:, :, None] & _span(x_key, share, width)[:, None]
        weight = jnp.where(is_cutmix[:, None, None], box, share[:, None, None])
        return jnp.where(is_cutmix, box.sum((1, 2)) / (height * width), share), weight


def _span(key, share, pixels: int):
    """Returns (b pixels) bools, True inside the box along one axis.

    The box has `sqrt(share)` of the axis as length, is centred on a pixel drawn uniformly, and is cut off at the edges.
    """
    length = jnp.floor(jnp.sqrt(share) * pixels)
    first = jax.random.randint(key, share.shape, 0, pixels) - length // 2
    offset = jnp.arange(pixels) - first[:, None]
    return (offset >= 0) & (offset < length[:, None])


def _partner(x):
    return jnp.roll(x, x.shape[0] // 2, axis=0)

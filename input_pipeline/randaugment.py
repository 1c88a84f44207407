"""RandAugment (Cubuk et al., 2020) for whole clips, in the variant whose severities grow with the magnitude.

MViT and its successors train with the setting `rand-m7-n4-mstd0.5-inc1`. This module has its operations, probabilities
and strengths. Pillow defines the operations for one picture; here they are computed for all frames of a clip at once.
Histograms and means are taken over the whole clip, because per frame they would make the brightness flicker. No
operation mirrors the clip, so labels with a direction stay correct.

Every operation takes a clip (t, y, x, 3) uint8 in C order. It returns a new clip or the same one and never changes its
argument.
"""

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np

_APPLY_PROBABILITY = 0.5  # of each drawn operation; the published magnitudes were tuned with this value
_GREY = (128, 128, 128)  # fills the area that a moved picture uncovers
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_LEVELS = np.arange(256)

Operations = tuple[tuple[Callable, float], ...]  # functions of a clip and a severity, with the severity


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `layers` operations in sequence, drawn from `OPERATIONS` with replacement.

    Attributes:
        layers: operations drawn per clip. Each is then applied with probability 1/2.
        magnitude: mean severity, 0 to 10.
        std: standard deviation of the severity of one operation. Severities are clipped to 0 to 10.
    """

    layers: int
    magnitude: float = 7.0
    std: float = 0.5

    def __call__(self, clip, rng: np.random.Generator):
        """Returns the augmented clip, (t, y, x, 3) uint8. All frames share the random draws."""
        return apply_operations(clip, self.sample(rng))

    def sample(self, rng: np.random.Generator) -> Operations:
        """Makes the random draws of one clip. Returns the operations to apply, each with its severity from -1 to 1."""
        operations = []
        for operation in rng.choice(OPERATIONS, self.layers):
            is_applied = rng.random() < _APPLY_PROBABILITY
            severity = np.clip(rng.normal(self.magnitude, self.std), 0, 10) / 10
            direction = rng.choice((-1, 1))
            if is_applied:
                operations.append((operation, direction * severity))
        return tuple(operations)


def apply_operations(clip, operations: Operations):
    """Returns the clip, (t, y, x, 3) uint8, after the operations that `RandAugment.sample` drew."""
    for operation, severity in operations:
        clip = operation(clip, severity)
    return clip


def autocontrast(clip):
    """Stretches each channel to the full range."""
    return _lookup(clip, *(_stretched_levels(counts) for counts in _histograms(clip)))


def equalize(clip):
    """Equalises the histogram of each channel, as far as a table of levels can."""
    return _lookup(clip, *(_equalised_levels(counts) for counts in _histograms(clip)))


def invert(clip):
    """Replaces each level by 255 minus the level."""
    return 255 - clip


def posterize(clip, bits):
    """Keeps the `bits` most significant bits, 0 to 8."""
    return clip & np.uint8(256 - 2 ** (8 - bits))


def solarize(clip, threshold):
    """Inverts the levels from `threshold`, 0 to 256, upwards."""
    return _lookup(clip, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def solarize_add(clip, amount):
    """Adds `amount` levels to those below 128."""
    return _lookup(clip, np.where(_LEVELS < 128, _LEVELS + amount, _LEVELS))


def brightness(clip, factor):
    """Scales the levels: 0 gives black, 1 the clip itself."""
    return _lookup(clip, _LEVELS * factor)


def contrast(clip, factor):
    """Scales the distance from the mean grey of the clip: 0 gives that grey, 1 the clip itself."""
    mean = np.round(_LUMA @ cv2.mean(_rows(clip))[:3])
    return _lookup(clip, mean + factor * (_LEVELS - mean))


def color(clip, factor):
    """Scales the saturation: 0 gives a grey clip, 1 the clip itself."""
    mix = factor * np.eye(3) + (1 - factor) * _LUMA
    return cv2.transform(_rows(clip), mix).reshape(clip.shape)


def sharpness(clip, factor):
    """Sharpens: 0 gives a smoothed clip, 1 the clip itself, more a sharper one. The outermost pixels do not change."""
    kernel = (1 - factor) * _SMOOTH
    kernel[1, 1] += factor
    sharp = clip.copy()
    for source, target in zip(clip, sharp, strict=True):
        target[1:-1, 1:-1] = cv2.filter2D(source, -1, kernel)[1:-1, 1:-1]
    return sharp


def shear_x(clip, slope):
    """Shifts each row to the left by `slope` times its distance from the top."""
    return _warp(clip, [[1, slope, 0], [0, 1, 0]])


def shear_y(clip, slope):
    """Shifts each column upwards by `slope` times its distance from the left."""
    return _warp(clip, [[1, 0, 0], [slope, 1, 0]])


def translate_x(clip, share):
    """Shifts the picture to the left by a share of its width."""
    return _warp(clip, [[1, 0, share * clip.shape[2]], [0, 1, 0]])


def translate_y(clip, share):
    """Shifts the picture upwards by a share of its height."""
    return _warp(clip, [[1, 0, 0], [0, 1, share * clip.shape[1]]])


def rotate(clip, degrees):
    """Rotates the picture counterclockwise about its centre."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    centre = np.array([clip.shape[2], clip.shape[1]]) / 2
    return _warp(clip, np.column_stack([rotation, centre - rotation @ centre]))


# Functions of a clip and a severity from -1 to 1. Only operations with two directions use the sign. `posterize` keeps
# at least one bit: with 0 bits, the highest magnitude would make a black clip.
OPERATIONS = (
    lambda clip, _: autocontrast(clip),
    lambda clip, _: equalize(clip),
    lambda clip, _: invert(clip),
    lambda clip, severity: rotate(clip, 30 * severity),
    lambda clip, severity: posterize(clip, max(4 - int(4 * abs(severity)), 1)),
    lambda clip, severity: solarize(clip, 256 - int(256 * abs(severity))),
    lambda clip, severity: solarize_add(clip, int(110 * abs(severity))),
    lambda clip, severity: color(clip, 1 + 0.9 * severity),
    lambda clip, severity: contrast(clip, 1 + 0.9 * severity),
    lambda clip, severity: brightness(clip, 1 + 0.9 * severity),
    lambda clip, severity: sharpness(clip, 1 + 0.9 * severity),
    lambda clip, severity: shear_x(clip, 0.3 * severity),
    lambda clip, severity: shear_y(clip, 0.3 * severity),
    lambda clip, severity: translate_x(clip, 0.45 * severity),
    lambda clip, severity: translate_y(clip, 0.45 * severity),
)


def _rows(clip):
    """Returns all frames below one another, (t y, x, 3), as one picture for OpenCV."""
    return clip.reshape(-1, *clip.shape[2:])


def _histograms(clip):
    """Returns how often each level occurs in each channel, (3, 256) int64."""
    counts = [cv2.calcHist([_rows(clip)], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.array(counts).reshape(3, 256).astype(np.int64)


def _lookup(clip, *levels):
    """Replaces every level, by one table of 256 levels or by one table per channel."""
    table = np.clip(np.round(levels), 0, 255).astype(np.uint8).T[None]
    return cv2.LUT(_rows(clip), table[..., 0] if len(levels) == 1 else table).reshape(clip.shape)


def _stretched_levels(counts):
    low, high = np.flatnonzero(counts)[[0, -1]]
    return _LEVELS if low == high else (_LEVELS - low) * (255 / (high - low))


def _equalised_levels(counts):
    # As in Pillow: a level becomes the number of pixels below it, in steps of 1/255 of all pixels but the brightest.
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    return _LEVELS if step == 0 else (step // 2 + np.cumsum(counts) - counts) // step


def _warp(clip, source):
    """Warps every frame. `source`, (2, 3), maps a target point to its source; pixel centres are at half-integers."""
    source = np.array(source, np.float64)
    source[:, 2] += source[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV has pixel centres at integers
    warp = functools.partial(
        cv2.warpAffine,
        M=source,
        dsize=clip.shape[2:0:-1],
        borderValue=_GREY,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
    )
    return np.stack([warp(frame) for frame in clip])

"""RandAugment (Cubuk et al., 2020) of whole clips, in the variant whose severities grow with the magnitude.

Operations, probabilities and strengths are those of the setting `rand-m7-n4-mstd0.5-inc1`, which MViT and its
successors train with. What Pillow defines for one picture is computed here for all frames of a clip at once,
histograms and mean included: stretched frame by frame, brightness would flicker. There is no mirror among the
operations, so that labels with a direction stay true.

Every operation takes a clip (t, y, x, 3) uint8, in C order, and returns another or the same one, never
changing what it was given.
"""

import dataclasses
import functools

import cv2
import numpy as np

_APPLIED = 0.5  # probability of each drawn operation, with which magnitudes were tuned
_GREY = (128, 128, 128)  # where a shifted picture has no pixels
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_LEVELS = np.arange(256)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` operations one after the other, drawn from `OPERATIONS` with replacement.

    Attributes:
      layers: operations drawn for a clip; each of them is then applied with probability 1/2.
      magnitude: 0 to 10, the mean severity.
      std: standard deviation of the severity of one operation; draws beyond 0 and 10 are cut off there.
    """

    layers: int
    magnitude: float = 7.0
    std: float = 0.5

    def __call__(self, clip, rng: np.random.Generator):
        """(t, y, x, 3) uint8, in C order -> the same shape; one draw for all frames."""
        for operation in rng.choice(OPERATIONS, self.layers):
            applied = rng.random() < _APPLIED
            severity = np.clip(rng.normal(self.magnitude, self.std), 0, 10) / 10
            direction = rng.choice((-1, 1))
            if applied:
                clip = operation(clip, direction * severity)
        return clip


def autocontrast(clip):
    """Stretches each channel to the full range."""
    return _lookup(clip, *(_stretch(counts) for counts in _histograms(clip)))


def equalize(clip):
    """Makes the histogram of each channel as flat as a table of levels can."""
    return _lookup(clip, *(_flatten(counts) for counts in _histograms(clip)))


def invert(clip):
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
    """Black at 0, the clip itself at 1."""
    return _lookup(clip, _LEVELS * factor)


def contrast(clip, factor):
    """The mean grey of the clip at 0, the clip itself at 1."""
    mean = np.round(_LUMA @ cv2.mean(_rows(clip))[:3])
    return _lookup(clip, mean + factor * (_LEVELS - mean))


def color(clip, factor):
    """A grey clip at 0, the clip itself at 1, more colourful above."""
    mix = factor * np.eye(3) + (1 - factor) * _LUMA
    return cv2.transform(_rows(clip), mix).reshape(clip.shape)


def sharpness(clip, factor):
    """A smoothed clip at 0, the clip itself at 1, sharper above. The outermost pixels stay as they are."""
    kernel = (1 - factor) * _SMOOTH
    kernel[1, 1] += factor
    sharp = clip.copy()
    for source, target in zip(clip, sharp, strict=True):
        target[1:-1, 1:-1] = cv2.filter2D(source, -1, kernel)[1:-1, 1:-1]
    return sharp


def shear_x(clip, slope):
    """Moves each row to the left by `slope` times its distance from the top."""
    return _warp(clip, [[1, slope, 0], [0, 1, 0]])


def shear_y(clip, slope):
    """Moves each column upwards by `slope` times its distance from the left."""
    return _warp(clip, [[1, 0, 0], [slope, 1, 0]])


def translate_x(clip, share):
    """Moves the picture to the left by a share of its width."""
    return _warp(clip, [[1, 0, share * clip.shape[2]], [0, 1, 0]])


def translate_y(clip, share):
    """Moves the picture upwards by a share of its height."""
    return _warp(clip, [[1, 0, 0], [0, 1, share * clip.shape[1]]])


def rotate(clip, degrees):
    """Turns the picture counterclockwise about its centre."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    centre = np.array([clip.shape[2], clip.shape[1]]) / 2
    return _warp(clip, np.column_stack([turn, centre - turn @ centre]))


# Each from a clip and a severity of -1 to 1, whose sign only those with two directions heed. At least one bit
# is kept: of none, the highest magnitude would make a black clip.
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
    """All frames below one another: (t y, x, 3), a picture for OpenCV."""
    return clip.reshape(-1, *clip.shape[2:])


def _histograms(clip):
    """(3, 256) int64 counts of the levels of each channel."""
    counts = [cv2.calcHist([_rows(clip)], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.array(counts).reshape(3, 256).astype(np.int64)


def _lookup(clip, *levels):
    """Replaces every level: by one table of 256, or one a channel."""
    table = np.clip(np.round(levels), 0, 255).astype(np.uint8).T[None]
    return cv2.LUT(_rows(clip), table[..., 0] if len(levels) == 1 else table).reshape(clip.shape)


def _stretch(counts):
    low, high = np.flatnonzero(counts)[[0, -1]]
    return _LEVELS if low == high else (_LEVELS - low) * (255 / (high - low))


def _flatten(counts):
    # As Pillow counts: the pixels below a level, in steps of 1/255 of all but the brightest.
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    return _LEVELS if step == 0 else (step // 2 + np.cumsum(counts) - counts) // step


def _warp(clip, source):
    """Moves pixels: `source` (2, 3) says from where, in a plane whose pixels lie between whole coordinates."""
    source = np.array(source, np.float64)
    source[:, 2] += source[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV's pixels lie on whole coordinates
    move = functools.partial(
        cv2.warpAffine,
        M=source,
        dsize=clip.shape[2:0:-1],
        borderValue=_GREY,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
    )
    return np.stack([move(frame) for frame in clip])

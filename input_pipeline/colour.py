"""Random colour changes of whole clips: moderate ones, and those of TokenShift's and of DMVR's public code.

All frames of a clip get the same change. Every function takes a clip (t, y, x, 3) uint8 in C order, and returns a new
clip or the same one.
"""

import cv2
import numpy as np

from input_pipeline.randaugment import brightness, color

CHANGES = ("brightness", "saturation", "gamma", "hue")

# The moderate strengths, each the half-width of a symmetric range. They stay within the differences that one scene
# shows between two cameras or two hours of the day, so that classes can still be told apart by colour.
_BRIGHTNESS = 0.3  # factor of all channels: half a stop
_SATURATION = 0.4  # factor of the distance from grey
_GAMMA = 0.3  # log of the exponent: 0.74 to 1.35, the differences between display standards
_HUE = 0.05  # turns of the colour circle: 18 degrees, beyond which skin colours look wrong

_LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # NTSC YIQ
_LUMA = np.array([0.2989, 0.587, 0.114])  # of TensorFlow's `rgb_to_grayscale`


def moderate(clip, applied, strengths):
    """Changes brightness and gamma, then saturation and hue in YIQ, within small ranges.

    Args:
        applied: (4,) bools, which of `CHANGES` are made.
        strengths: (4,) from -1 to 1, the positions in the ranges of `CHANGES`.
    """
    brightness, saturation, gamma, hue = strengths * applied * (_BRIGHTNESS, _SATURATION, _GAMMA, _HUE)
    pixels = _rows(clip)
    if brightness or gamma:
        levels = (np.arange(256) / 255) ** np.exp(gamma) * (1 + brightness)
        pixels = cv2.LUT(pixels, np.clip(levels * 255 + 0.5, 0, 255).astype(np.uint8))
    if saturation or hue:
        angle, scale = 2 * np.pi * hue, 1 + saturation
        rotation = np.eye(3)
        rotation[1:, 1:] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        pixels = cv2.transform(pixels, np.linalg.inv(_LUMA_CHROMA) @ rotation @ _LUMA_CHROMA)
    return pixels.reshape(clip.shape)


def tokenshift(clip, applied, strengths):
    """Changes brightness, saturation, gamma and hue, in this order, as TokenShift's code does.

    The ranges are those of `data/augmentation.py` in VideoNetworks/TokShift-Transformer: a factor of brightness from
    0.5 to 2 and of saturation from 0.5 to 3, an exponent from 0.8 to 1.2, and a shift of the hue by up to half a turn.

    Args:
        applied, strengths: as in `moderate`.
    """
    low, high = np.array([(0.5, 2.0), (0.5, 3.0), (0.8, 1.2), (-0.5, 0.5)]).T
    values = low + (strengths + 1) / 2 * (high - low)
    for change, is_applied, value in zip((brightness, color, gamma, shift_hue), applied, values, strict=True):
        if is_applied:
            clip = change(clip, value)
    return clip


RANGES = {"moderate": moderate, "tokenshift": tokenshift}


def gamma(clip, exponent):
    """Raises the levels, from 0 to 1, to a power."""
    # The factor makes 256 equally wide levels, as in torchvision.
    levels = np.floor(255.999 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return cv2.LUT(_rows(clip), levels).reshape(clip.shape)


def shift_hue(clip, turns):
    """Rotates the hue in HSV, of which every channel has 256 levels."""
    hsv = cv2.cvtColor(_rows(clip), cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * turns) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).reshape(clip.shape)


def jitter(clip, strengths):
    """Changes brightness, saturation, contrast and hue, in this order, as DMVR's `color_default_augm` does.

    Up to 32 levels are added. Saturation and the distance from the mean of a frame's channel are multiplied by 0.6 to
    1.4. The hue is rotated by up to a fifth of a turn. Levels are clipped at the end alone.

    Args:
        strengths: (4,) from -1 to 1, the positions in the four ranges.
    """
    added, saturation, contrast, hue = strengths * (32 / 255, 0.4, 0.4, 0.2)
    result = np.empty_like(clip)
    for frame, out in zip(clip, result, strict=True):  # one after another, so that a frame stays in the cache
        hsv = cv2.cvtColor(cv2.add(frame * np.float32(1 / 255), (added,) * 3), cv2.COLOR_RGB2HSV)
        hsv[..., 1] = cv2.min(hsv[..., 1] * np.float32(1 + saturation), 1)
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        x = cv2.transform(x, _about(cv2.mean(x)[:3], 1 + contrast))
        hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + np.float32(360 * (1 + hue))) % 360
        cv2.convertScaleAbs(cv2.max(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0), out, 255)
    return result


def _about(mean, factor):
    """Returns the affine map (3, 4) of channels that multiplies their distance from `mean` by a factor."""
    return np.column_stack([factor * np.eye(3), (1 - factor) * np.array(mean)])


def grey(clip):
    """Replaces every channel by the luma."""
    return cv2.transform(_rows(clip), np.tile(_LUMA, (3, 1))).reshape(clip.shape)


def _rows(clip):
    """Returns all frames below one another, (t y, x, 3), as one picture for OpenCV."""
    return clip.reshape(-1, *clip.shape[2:])

"""Crops, flips and colour of a clip of uint8 frames: one draw for all its frames.

A draw of their own for every frame would be motion that is not in the video.
"""

import dataclasses

import cv2
import numpy as np

from input_pipeline.errors import DataError

# Strengths, each the half-width of a symmetric range. They stay within what one scene shows between two
# cameras or two hours of the day, so that the colours that tell classes apart survive.
_BRIGHTNESS = 0.3  # factor of all channels: half a stop
_SATURATION = 0.4  # factor of the distance from grey
_GAMMA = 0.3       # exponent, in powers of e: 0.74 to 1.35, the differences between display standards
_HUE = 0.05        # turns of the colour circle: 18 degrees, beyond which skin looks ill

_LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # NTSC YIQ


@dataclasses.dataclass(frozen=True)
class TrainAugment:
    """Random scale and crop, horizontal flip, and colour changes.

    The scale jitter and crop are those of Simonyan & Zisserman (2014) as video classifiers use them. Window
    and scale are chosen together and the window of the source is resized once, which costs a fraction of
    resizing whole frames; the window's edges are whole source pixels.

    Attributes:
      size: pixels, side of the crop.
      short_side: (low, high) pixels, uniform range of the side that the frame's shorter one is scaled to.
      flip: probability of a horizontal flip.
      flip_swaps: label -> label, for classes that a mirror turns into each other (left to right).
      brightness, saturation, gamma, hue: each the probability of that change, 0.1 in MSCA's recipe.
    """
    size: int
    short_side: tuple[int, int]
    flip: float = 0.5
    flip_swaps: dict[int, int] = dataclasses.field(default_factory=dict)
    brightness: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0
    hue: float = 0.0

    def __call__(self, frames, label, rng: np.random.Generator):
        """Augments one clip.

        Args:
          frames: (t, y, x, 3) uint8.
          label: int.
          rng: source of the draws. Every draw is made whatever the probabilities, so that switching one
            change on leaves the others as they were.

        Returns:
          (t, size, size, 3) uint8 and the label, swapped where the clip is flipped.
        """
        _, height, width, _ = frames.shape
        side = _window_side(frames, self.size, rng.integers(*self.short_side, endpoint=True))
        top, left = rng.integers(0, [height - side, width - side], endpoint=True)
        clip = _resize(frames[:, top:top + side, left:left + side], self.size)
        if rng.random() < self.flip:
            clip, label = clip[:, :, ::-1], self.flip_swaps.get(label, label)
        return self._recolour(np.ascontiguousarray(clip), rng), label

    def _recolour(self, clip, rng):
        apply = rng.random(4) < (self.brightness, self.saturation, self.gamma, self.hue)
        strength = rng.uniform(-1, 1, 4) * apply
        brightness, saturation, gamma, hue = strength * (_BRIGHTNESS, _SATURATION, _GAMMA, _HUE)
        pixels = clip.reshape(-1, clip.shape[2], 3)
        if brightness or gamma:
            levels = (np.arange(256) / 255) ** np.exp(gamma) * (1 + brightness)
            pixels = cv2.LUT(pixels, np.clip(levels * 255 + 0.5, 0, 255).astype(np.uint8))
        if saturation or hue:
            angle, scale = 2 * np.pi * hue, 1 + saturation
            turn = np.eye(3)
            turn[1:, 1:] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            pixels = cv2.transform(pixels, np.linalg.inv(_LUMA_CHROMA) @ turn @ _LUMA_CHROMA)
        return pixels.reshape(clip.shape)


def crop_places(crops: int) -> tuple[float, ...]:
    """Where test crops lie along the longer side, from 0 (left or top) to 1.

    Raises:
      DataError: for other counts than 1 and 3, the ones that results are published for.
    """
    places = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
    if crops not in places:
        raise DataError(f"eval.crops must be 1 (the centre) or 3 (along the longer side), but is {crops!r}.")
    return places[crops]


def test_crops(frames, size, crops, short_side=None):
    """The crops a video is tested on.

    Args:
      frames: (t, y, x, 3) uint8.
      size: pixels, side of the crops.
      crops: 1, the centre, or 3, evenly spaced along the longer side from end to end.
      short_side: pixels that the frame's shorter side is scaled to; None is `size`.

    Returns:
      (crops, t, size, size, 3) uint8.

    Raises:
      DataError: `crops` is neither 1 nor 3.
    """
    _, height, width, _ = frames.shape
    side = _window_side(frames, size, short_side or size)
    views = []
    for place in crop_places(crops):
        down, across = (place, 0.5) if height > width else (0.5, place)
        top, left = round(down * (height - side)), round(across * (width - side))
        views.append(_resize(frames[:, top:top + side, left:left + side], size))
    return np.stack(views)


def _window_side(frames, size, short_side):
    """Source pixels that a crop of `size` covers when the frame's shorter side is scaled to `short_side`."""
    return max(1, round(size * min(frames.shape[1:3]) / short_side))


def _resize(windows, size):
    # Bilinear interpolation looks at 2 x 2 pixels: beyond a factor of two it would leave some out.
    method = cv2.INTER_AREA if windows.shape[1] > 2 * size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(window, (size, size), interpolation=method) for window in windows])

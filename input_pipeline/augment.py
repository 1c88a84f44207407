"""Augmentation of uint8 clips: crops, flips, colour changes and erasing.

All frames of a clip share one random draw. A separate draw for each frame would add motion that is not in the video.
"""

import dataclasses
import numbers

import numpy as np

from input_pipeline import colour
from input_pipeline.errors import DataError
from input_pipeline.randaugment import Operations, RandAugment, apply_operations
from input_pipeline.resize import METHODS, resize_box

_ATTEMPTS = 10  # boxes drawn; the first that fits is used
_ERASED_AREA = (0.02, 1 / 3)  # share of the frame, from Zhong et al. (2020)
_ERASED_ASPECT = (0.3, 3.3)


@dataclasses.dataclass(frozen=True)
class TrainAugment:
    """Applies a random crop, horizontal flip, RandAugment or colour changes, and random erasing, in this order.

    Only the crop window is resized, which costs a fraction of resizing whole frames. The edges of the window are whole
    source pixels.

    Attributes:
        size: pixels, side of the crop.
        short_side: (low, high) pixels. The shorter side of the frame is scaled to a uniform draw from this range.
        flip: probability of a horizontal flip.
        flip_swaps: label -> label, for classes that a mirror turns into each other (left and right).
        brightness, saturation, gamma, hue: probability of each change, 0.1 in MSCA's recipe.
        colour_ranges: strengths and order of these changes, 'moderate' or those of TokenShift's code, 'tokenshift', see
            `colour`.
        colour_jitter: probability of the colour changes of DMVR, which ViViT uses, see `colour.jitter`.
        grey: probability that the clip is made grey, after the colour changes.
        stretch: (low, high). Height and width are multiplied by two independent uniform draws from this range before
            the 'jitter' crop, as in DMVR.
        crop: 'jitter', a square at the scale of `short_side`, as in Simonyan & Zisserman (2014) and video classifiers
            since. 'resized', a rectangle stretched to the square, as in Szegedy et al. (2015) and the recipes that
            train from random weights. If no drawn rectangle fits, the largest centred one that `aspect` allows is
            used.
        area: (low, high) share of the frame that the rectangle of 'resized' covers.
        aspect: (low, high) width / height of that rectangle, whose logarithm is uniform.
        randaugment: number of RandAugment operations per clip. 0 switches RandAugment off; MViT uses 4. RandAugment
            replaces the colour changes.
        magnitude, magnitude_std: mean severity of the operations, 0 to 10, and its standard deviation.
        erasing: probability that a box of 2% to a third of the frame is filled with noise, the same in all frames.
        resize: 'bilinear' or 'bicubic', see `resize.resize_box`.

    Raises:
        DataError: one of the fields from `crop` on is out of range, or RandAugment and colour changes are both on.
    """

    size: int
    short_side: tuple[int, int]
    flip: float = 0.5
    flip_swaps: dict[int, int] = dataclasses.field(default_factory=dict)
    brightness: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0
    hue: float = 0.0
    colour_ranges: str = "moderate"
    colour_jitter: float = 0.0
    grey: float = 0.0
    stretch: tuple[float, float] = (1.0, 1.0)
    crop: str = "jitter"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 1.3333)
    randaugment: int = 0
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erasing: float = 0.0
    resize: str = "bilinear"

    def __post_init__(self):
        def require(field, condition, expected):
            if not condition:
                raise DataError(f"data.{field} must be {expected}, but is {getattr(self, field)!r}.")

        layers = self.randaugment
        require("resize", self.resize in METHODS, " or ".join(map(repr, METHODS)))
        require("crop", self.crop in ("jitter", "resized"), "'jitter' or 'resized'")
        require("area", _is_range(self.area, 1), "two ascending numbers above 0 and up to 1")
        require("aspect", _is_range(self.aspect, np.finfo(float).max), "two ascending numbers above 0")
        require(
            "randaugment",
            isinstance(layers, numbers.Integral) and not isinstance(layers, bool) and layers >= 0,
            "a whole number of at least 0",
        )
        require("colour_ranges", self.colour_ranges in colour.RANGES, " or ".join(map(repr, colour.RANGES)))
        require("stretch", _is_range(self.stretch, np.finfo(float).max), "two ascending numbers above 0")
        is_stretched = tuple(self.stretch) != (1.0, 1.0)
        require("stretch", not (is_stretched and self.crop == "resized"), "(1.0, 1.0) if data.crop is 'resized'")
        require(
            "stretch",
            not is_stretched or self.short_side[0] * self.stretch[0] >= self.size,
            f"at least {self.size / self.short_side[0]:.3f}: a shorter side of data.short_side={self.short_side} must "
            f"not shrink below data.size={self.size}",
        )
        numbers_to = (("magnitude", 10), ("magnitude_std", 10), ("erasing", 1), ("colour_jitter", 1), ("grey", 1))
        for field, most in numbers_to:
            value = getattr(self, field)
            require(field, isinstance(value, numbers.Real) and 0 <= value <= most, f"from 0 to {most}")
        for field in (*colour.CHANGES, "colour_jitter", "grey"):
            require(field, not (layers and getattr(self, field)), f"0 if data.randaugment is {layers}")
        for field in colour.CHANGES:
            require(field, not (self.colour_jitter and getattr(self, field)), "0 if data.colour_jitter is on")

    def mirrored_label(self, label):
        """Returns the label of the mirrored clip: a class number of a class number, a tuple of a tuple."""
        if isinstance(label, tuple):
            return tuple(map(self.mirrored_label, label))
        return self.flip_swaps.get(label, label)

    def __call__(self, frames, label, rng: np.random.Generator):
        """Augments one clip that is in memory, see `sample`.

        Args:
            frames: (t, y, x, 3) uint8.
            label: class number, or the class numbers of several labels.
            rng: generator of the random draws.

        Returns:
            The clip, (t, size, size, 3) uint8, and its label or labels, which a flip may swap.
        """
        sampled = self.sample(*frames.shape[1:3], rng)
        return sampled.finish(np.stack([sampled.crop(frame) for frame in frames]), label)

    def sample(self, height, width, rng: np.random.Generator) -> "SampledAugment":
        """Makes all random draws of one clip, before its frames are known.

        All draws are made even for changes that are off, so that switching one change on does not alter the others.
        Draws whose number varies come last.

        Args:
            height, width: pixels of a frame.
            rng: generator of the random draws.
        """
        side = _window_side(height, width, self.size, rng.integers(*self.short_side, endpoint=True))
        top, left = rng.integers(0, [height - side, width - side], endpoint=True)
        window, flipped = (top, left, side, side), rng.random() < self.flip
        chances, strengths = rng.random(4), rng.uniform(-1, 1, 4)
        boxes, erased = rng.random((2, _ATTEMPTS, 4)), rng.random() < self.erasing
        # The last attempt at a box is as good as never used. Its draws serve the changes that were added later.
        spare = boxes[0, -1]
        if self.crop == "resized":
            window = _box(boxes[0], height, width, self.area, self.aspect) or _widest(height, width, self.aspect)
        elif tuple(self.stretch) != (1.0, 1.0):
            window = _stretched(window, height, width, self.stretch, spare[:2])
        operations: Operations = ()
        if self.randaugment:
            operations = RandAugment(self.randaugment, self.magnitude, self.magnitude_std).sample(rng)
        box = _box(boxes[1], self.size, self.size, _ERASED_AREA, _ERASED_ASPECT) if erased else None
        noise = rng.integers(0, 256, (*box[2:], 3), np.uint8) if box else None
        return SampledAugment(self, window, flipped, chances, strengths, spare[2:], operations, box, noise)


@dataclasses.dataclass(frozen=True)
class SampledAugment:
    """The augmentation of one clip, after its random draws.

    `crop` applies to each frame as soon as it is decoded, so that no two frames of the video are in memory at once.

    Attributes:
        augment: the settings.
        window: (top, left, height, width), the pixels of the frame that the clip shows.
        flipped: whether the clip is mirrored.
        chances, strengths: (4,) floats, the draws of the colour changes.
        later_chances: (2,) floats, the draws of `colour_jitter` and `grey`.
        operations: the operations of RandAugment, see `RandAugment.sample`.
        box: (top, left, height, width), the pixels of the clip that are erased, or None.
        noise: (height, width, 3) uint8, the content of `box`, or None.
    """

    augment: TrainAugment
    window: tuple[int, int, int, int]
    flipped: bool
    chances: np.ndarray
    strengths: np.ndarray
    later_chances: np.ndarray
    operations: Operations
    box: tuple[int, int, int, int] | None
    noise: np.ndarray | None

    def crop(self, frame):
        """Returns the window of a frame, (y, x, 3) uint8, as (size, size, 3) uint8."""
        return resize_box(frame, self.window, self.augment.size, self.augment.resize)

    def finish(self, clip, label):
        """Applies everything but the crop.

        Args:
            clip: (t, size, size, 3) uint8, the crops of the frames. It may be changed.
            label: class number, or the class numbers of several labels.

        Returns:
            The clip, (t, size, size, 3) uint8, and its label or labels, which a flip may swap.
        """
        if self.flipped:
            clip, label = clip[:, :, ::-1], self.augment.mirrored_label(label)
        clip = apply_operations(self._recolour(np.ascontiguousarray(clip)), self.operations)
        if self.box:
            top, left, height, width = self.box
            clip[:, top : top + height, left : left + width] = self.noise
        return clip, label

    def _recolour(self, clip):
        augment, (jitter_chance, grey_chance) = self.augment, self.later_chances
        applied = self.chances < [getattr(augment, change) for change in colour.CHANGES]
        clip = colour.RANGES[augment.colour_ranges](clip, applied, self.strengths)
        if jitter_chance < augment.colour_jitter:
            clip = colour.jitter(clip, self.strengths)
        return colour.grey(clip) if grey_chance < augment.grey else clip


def crop_positions(crops: int) -> tuple[float, ...]:
    """Returns the positions of the test crops along the longer side, from 0 (left or top) to 1 (right or bottom).

    Raises:
        DataError: `crops` is not 1 or 3. Results are published for these numbers only.
    """
    positions = {1: (0.5,), 3: (0.0, 0.5, 1.0)}
    if crops not in positions:
        raise DataError(f"eval.crops must be 1 (the centre) or 3 (along the longer side), but is {crops!r}.")
    return positions[crops]


def test_crops(frames, size, crops, short_side=None, resize="bilinear"):
    """Returns the spatial test crops of a clip.

    Args:
        frames: (t, y, x, 3) uint8.
        size: pixels, side of the crops.
        crops: 1, the centre, or 3, evenly spaced along the longer side from end to end.
        short_side: pixels that the shorter side of the frame is scaled to. None: `size`.
        resize: 'bilinear' or 'bicubic', see `resize.resize_box`.

    Returns:
        (crops, t, size, size, 3) uint8.

    Raises:
        DataError: `crops` is neither 1 nor 3.
    """
    _, height, width, _ = frames.shape
    side = _window_side(height, width, size, short_side or size)
    views = []
    for position in crop_positions(crops):
        down, across = (position, 0.5) if height > width else (0.5, position)
        top, left = round(down * (height - side)), round(across * (width - side))
        views.append([resize_box(frame, (top, left, side, side), size, resize) for frame in frames])
    return np.stack(views)


def _box(draws, height, width, area, aspect):
    """Returns a random box (top, left, height, width) in whole pixels, or None if no draw fits.

    Args:
        draws: (n, 4) uniform draws from 0 to 1. A row is one attempt: area, aspect, position along y and along x.
        height, width: pixels of the frame.
        area: (low, high) share of the frame, uniform.
        aspect: (low, high) width / height, whose logarithm is uniform.
    """
    pixels = height * width * (area[0] + draws[:, 0] * (area[1] - area[0]))
    ratio = np.exp(np.log(aspect[0]) + draws[:, 1] * np.log(aspect[1] / aspect[0]))
    sides = np.stack([np.sqrt(pixels / ratio), np.sqrt(pixels * ratio)], axis=1).round().astype(int)
    fits = np.flatnonzero(((sides >= 1) & (sides <= (height, width))).all(axis=1))
    if not len(fits):
        return None
    (box_height, box_width), (down, across) = sides[fits[0]], draws[fits[0], 2:]
    return int(down * (height - box_height + 1)), int(across * (width - box_width + 1)), box_height, box_width


def _widest(height, width, aspect):
    """Returns the largest centred box (top, left, height, width) whose width / height is within `aspect`."""
    ratio = np.clip(width / height, *aspect)
    box_height, box_width = max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _stretched(window, height, width, stretch, draws):
    """Returns the box (top, left, height, width) that the crop shows if height and width are scaled by two factors.

    Args:
        window: the box without the factors.
        height, width: pixels of the frame.
        stretch: (low, high), the range of the factors, which are uniform.
        draws: (2,) uniform draws from 0 to 1.
    """
    factors = stretch[0] + draws * (stretch[1] - stretch[0])
    box, sides = [], np.array([height, width])
    lengths = np.clip(np.round(window[2:] / factors), 1, sides).astype(int)
    for start, length, side, longer in zip(window[:2], window[2:], sides, lengths, strict=True):
        # The same place of the range of starts.
        share = start / (side - length) if side > length else 0.5
        box.append(round(share * (side - longer)))
    return *box, *lengths


def _is_range(bounds, most):
    return (
        isinstance(bounds, (tuple, list))
        and len(bounds) == 2
        and all(isinstance(bound, numbers.Real) for bound in bounds)
        and 0 < bounds[0] <= bounds[1] <= most
    )


def _window_side(height, width, size, short_side):
    """Returns the side, in source pixels, of a crop of `size` when the shorter side is scaled to `short_side`."""
    return max(1, round(size * min(height, width) / short_side))

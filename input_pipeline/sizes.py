"""Sizes of frames and clips in pixels."""

MAX_SIZE = 16_384  # pixels, the side of a clip
MAX_PIXELS = 2**28  # of a clip, 0.8 GB


def default_short_side(size: int) -> tuple[int, int]:
    """Returns the range of the shorter side to which frames are scaled in training, for crops of `size` pixels.

    It is 8/7 to 10/7 of `size`, and 256 to 320 for 224.
    """
    return round(size * 8 / 7), round(size * 10 / 7)


def scaled_short_side(side, before: int, after: int):
    """Returns a shorter side, or a range of it, for crops of `after` pixels in place of `before`."""
    if isinstance(side, int):
        return round(side * after / before)
    return type(side)(scaled_short_side(bound, before, after) for bound in side)

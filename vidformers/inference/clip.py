"""A clip of a video as a model sees it."""

from typing import NamedTuple

import numpy as np


class Clip(NamedTuple):
    """The frames of a clip.

    Attributes:
        video: the path of the video.
        frames: uint8 (t y x 3).
        index: (t), the frame indices in the video.
        error: why the video cannot be decoded, or ''.
    """

    video: str
    frames: np.ndarray
    index: np.ndarray
    error: str

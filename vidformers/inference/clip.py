"""Videos as users give them, and clips of them as a model sees them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.sources.csv import split_part
from vidformers.errors import require

Video = str | os.PathLike | np.ndarray  # a path, or the frames


class Clip(NamedTuple):
    """The frames of a clip.

    Attributes:
        video: the path of the video, or its part.
        frames: uint8 (t y x 3).
        index: (t), the frame indices in the video.
        error: why the video cannot be decoded, or ''.
    """

    video: str
    frames: np.ndarray
    index: np.ndarray
    error: str


def video_records(videos: Sequence[Video]) -> tuple[Record, ...]:
    """Returns the records of paths, parts such as `long.mp4#t=12.5,14`, and arrays.

    Raises:
        ConfigError: an array does not hold the frames of a video.
    """
    records = []
    for number, video in enumerate(videos):
        if isinstance(video, (str, os.PathLike)):
            path, start, end = split_part(os.fspath(video))
            records.append(Record(number, path, 0, 0, start, end, name=os.fspath(video)))
            continue
        frames = np.asarray(video)
        is_video = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and frames.size
        place = f" at place {number} of the videos" if len(videos) > 1 else ""
        require(
            bool(is_video),
            f"The array{place} is {frames.dtype} {frames.shape}. Give the frames of one video, uint8 "
            "(frames, height, width, 3) in red, green and blue.",
        )
        records.append(Record(number, f"array {number}", 0, 0, name=f"array {number}", frames=frames))
    return tuple(records)


def decoding_error(batch: dict[str, np.ndarray], row: int) -> str:
    """Returns why the video of a row of a batch cannot be decoded, or ''."""
    return "" if batch["mask"][row] else batch["error"][row].decode("utf-8", "replace")

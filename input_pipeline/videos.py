"""Opening the video of a record from a video file, a folder of frames, or a row of a shard."""

import itertools
import os
import re
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.decode import Info, Video
from input_pipeline.errors import DecodeError
from input_pipeline.shards import read_video
from input_pipeline.sources import tfds

# A file that is longer than its clip by more than this is not yet cut to the clip. Files that were cut at keyframes are
# longer by less.
_SPARE_SECONDS = 1.0
_TOLERANCE = 1e-6  # seconds, for rounding of times; far below the duration of any frame

_NUMBERED = re.compile(r"(.*?)(\d+)\.jpe?g", re.IGNORECASE)


class OpenVideo(Protocol):
    """The interface that all videos share; `decode.Video` describes the attributes and methods."""

    times: np.ndarray
    duration: float

    @property
    def decoded(self) -> int: ...

    def frames(self, indices) -> np.ndarray: ...

    def each(self, indices) -> Iterator[np.ndarray]: ...

    def info(self) -> Info: ...


def open_video(record: Record, *, frame_rate: float = 30.0, limit_seconds: float = 60.0) -> OpenVideo:
    """Opens the video of a record.

    The video is cut to the `start` and `end` of the record if the file is over a second longer than `end - start`.
    Otherwise the file counts as already cut to the clip.

    Args:
        record: see `annotations.Record`.
        frame_rate: frames per second at which frames were extracted. Video files store their own rate.
        limit_seconds: see `decode.Video`.

    Raises:
        DecodeError: the video cannot be opened, or ends before `start`.
    """
    video: OpenVideo
    if record.position is not None:
        name, data = f"{record.path} row {record.position}", read_video(record.path, record.position)
        if record.feature:
            video = CompressedFrames(tfds.example(data)[record.feature].bytes_list.value, frame_rate, name)
        else:
            video = Video(data, name=name, strict=True, limit_seconds=limit_seconds)
    elif os.path.isdir(record.path):
        video = FrameFolder(record.path, frame_rate)
    else:
        video = Video(record.path, limit_seconds=limit_seconds)
    if record.start is None or record.end is None or video.duration <= record.end - record.start + _SPARE_SECONDS:
        return video
    if record.start >= video.duration:
        raise DecodeError(f"{record.path}: lasts {video.duration:g} s, but its clip starts at {record.start:g} s.")
    return Cut(video, record.start, record.end, record.path)


class Cut:
    """The part of a video that is on screen from `start` to `end` seconds. Its times and indices start at 0."""

    def __init__(self, video, start, end, path):
        times = np.asarray(video.times)
        self._first = int(np.searchsorted(times, start + _TOLERANCE, side="right")) - 1
        stop = max(int(np.searchsorted(times, end - _TOLERANCE)), self._first + 1)
        self._video, self._path = video, path
        self.times = times[self._first : stop] - times[self._first]
        self.duration = float((times[stop] if stop < len(times) else video.duration) - times[self._first])

    def frames(self, indices) -> np.ndarray:
        """Returns (n, y, x, 3) uint8, see `decode.Video.frames`."""
        indices = _checked(indices, self.times, self._path)
        return self._video.frames(self._first + indices)

    def each(self, indices) -> Iterator[np.ndarray]:
        """Yields (y, x, 3) uint8, see `decode.Video.each`."""
        return self._video.each(self._first + _checked(indices, self.times, self._path))

    def info(self) -> Info:
        """Returns the properties of the whole file."""
        return self._video.info()

    @property
    def decoded(self) -> int:
        """Number of frames that were decoded so far."""
        return self._video.decoded


class Pictures:
    """A video whose frames are compressed one by one; the base class of such videos.

    Attributes:
        times: (n,) float64, seconds from the first frame to each frame.
        duration: seconds, the end of the last frame.
        decoded: number of frames that were decoded so far.
    """

    def __init__(self, name, count, frame_rate):
        self._name = name
        self.times = np.arange(count) / frame_rate
        self.duration = count / frame_rate
        self.decoded = 0

    def frames(self, indices) -> np.ndarray:
        """Returns the frames of the given indices, which may be in any order and repeat; each is decoded once.

        Returns:
            (n, y, x, 3) uint8, red, green, blue.

        Raises:
            IndexError: an index is outside [0, len(times)).
            DecodeError: a frame does not exist, is not a picture, is truncated, or has another size than the others.
        """
        distinct, inverse = np.unique(_checked(indices, self.times, self._name), return_inverse=True)
        images = [self._read(index) for index in distinct]
        self.decoded += len(images)
        if len({image.shape for image in images}) > 1:
            raise DecodeError(f"{self._name}: the frames are not of one size.")
        return np.stack(images)[inverse]

    def each(self, indices) -> Iterator[np.ndarray]:
        """Yields the frames one at a time, see `decode.Video.each`."""
        shape = None
        for index, group in itertools.groupby(_checked(indices, self.times, self._name).tolist()):
            image = self._read(index)
            self.decoded += 1
            if image.shape != (shape := shape or image.shape):
                raise DecodeError(f"{self._name}: the frames are not of one size.")
            for _ in group:
                yield image

    def _read(self, index):
        """Returns the frame with this index, (y, x, 3) uint8."""
        raise NotImplementedError


class FrameFolder(Pictures):
    """A video stored as a folder of JPEG files, numbered from 0 or from 1 with any number of leading zeros.

    Args:
        path: the folder. Other files in the folder are ignored.
        frame_rate: frames per second.

    Raises:
        DecodeError: there are no frames, a number is missing, or the file names have several patterns.
    """

    def __init__(self, path: str, frame_rate: float = 30.0):
        try:
            matches = [match for match in map(_NUMBERED.fullmatch, os.listdir(path)) if match]
        except OSError as error:
            raise DecodeError(f"{path}: {error.strerror}.") from error
        if not matches:
            raise DecodeError(f"{path}: the folder holds no numbered JPEG frames.")
        prefixes = sorted({match[1] for match in matches})
        if len(prefixes) > 1:
            raise DecodeError(f"{path}: the folder holds frames of several videos, {prefixes[0]}* and {prefixes[1]}*.")
        matches.sort(key=lambda match: int(match[2]))
        numbers = [int(match[2]) for match in matches]
        for expected, (number, match) in enumerate(zip(numbers, matches, strict=True), start=min(numbers[0], 1)):
            if number < expected:
                raise DecodeError(f"{path}: the frame {match[0]} exists under two names.")
            if number > expected:
                width = len(matches[0][2])
                raise DecodeError(
                    f"{path}: the frame {match[1]}{expected:0{width}}{os.path.splitext(match[0])[1]} is missing."
                )
        super().__init__(path, len(matches), frame_rate)
        self._files = [os.path.join(path, match[0]) for match in matches]

    def info(self) -> Info:
        """Returns the properties of the first frame. Raises DecodeError as `frames` does."""
        height, width, _ = self._read(0).shape
        return Info("mjpeg", width, height, 0, False)

    def _read(self, index):
        path = self._files[index]
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise DecodeError(f"{path}: {error.strerror}.") from error
        # OpenCV fills the rest of a truncated picture with grey and reports no error. In a complete file the end marker
        # (FFD9) follows the last scan marker (FFDA). Neither occurs within compressed data, and the markers of an
        # embedded thumbnail come before.
        is_complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if is_complete else None
        if image is None:
            raise DecodeError(f"{path}: not a complete JPEG file.")
        return image


class CompressedFrames(Pictures):
    """A video whose frames are PNG or JPEG pictures in memory.

    Args:
        files: the content of each picture file, bytes.
        frame_rate: frames per second.
        name: name of the video in errors.

    Raises:
        DecodeError: there are no frames.
    """

    def __init__(self, files, frame_rate: float, name: str):
        if not files:
            raise DecodeError(f"{name}: the video has no frames.")
        super().__init__(name, len(files), frame_rate)
        self._files = files

    def info(self) -> Info:
        """Returns the properties of the first frame. Raises DecodeError as `frames` does."""
        height, width, _ = self._read(0).shape
        return Info("png" if self._files[0].startswith(b"\x89PNG") else "mjpeg", width, height, 0, False)

    def _read(self, index):
        image = cv2.imdecode(np.frombuffer(self._files[index], np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise DecodeError(f"{self._name}: frame {index} is not a picture that can be decoded.")
        return image


def _checked(indices, times, name):
    indices = np.asarray(indices, np.int64)
    if not (indices.size and 0 <= indices.min() and indices.max() < len(times)):
        raise IndexError(f"{name} has {len(times)} frames, but the indices are {indices}.")
    return indices

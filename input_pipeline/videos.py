"""Opening the video of a record from a video file, a folder of frames, a row of a shard, or frames in memory."""

import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.display import Info, check_size
from input_pipeline.errors import DecodeError
from input_pipeline.paths import is_address, is_stream
from input_pipeline.sampling import sampling_remark
from input_pipeline.shards import read_video
from input_pipeline.sources import tfds
from input_pipeline.video_part import TOLERANCE, CannotSeek, VideoPart, no_frame, require_within

# A file that is longer than its clip by more than this is not yet cut to the clip. Files that were cut at keyframes are
# longer by less.
_SPARE_SECONDS = 1.0

# Names that begin with a dot are hidden files. macOS keeps a file ._name beside each file on other file systems.
_NUMBERED = re.compile(r"(?!\.)(.*?)(\d+)\.jpe?g", re.IGNORECASE)

_PNG = b"\x89PNG"
# What Pillow raised for the headers of 200,000 damaged files. Any other exception is an error of the program.
_PILLOW_ERRORS = (SyntaxError, OSError, ValueError)


class OpenVideo(Protocol):
    """The interface that all videos share; `decode.Video` describes the attributes and methods."""

    times: np.ndarray
    duration: float

    @property
    def decoded(self) -> int: ...

    @property
    def remarks(self) -> tuple[str, ...]: ...

    def frames(self, indices) -> np.ndarray: ...

    def each(self, indices, *, one_limit: bool = False) -> Iterator[np.ndarray]: ...

    def info(self) -> Info: ...


def remarks(video: OpenVideo) -> tuple[str, ...]:
    """Returns sentences on how the frames of a video are read, where that is not obvious. Most videos have none."""
    remark = sampling_remark(video.times, video.duration)
    return (*video.remarks, remark) if remark else video.remarks


def open_video(record: Record, *, frame_rate: float = 30.0, limit_seconds: float = 60.0) -> OpenVideo:
    """Opens the video of a record.

    The video is cut to the `start` and `end` of the record. A file that may be cut already is only cut if it is over a
    second longer than `end - start`.

    Args:
        record: see `annotations.Record`.
        frame_rate: frames per second at which frames were extracted. Video files store their own rate.
        limit_seconds: see `decode.Video`.

    Raises:
        DecodeError: the video is an address, cannot be opened, ends before `start`, or ends over half a second before
            `end`; or there is no frame between `start` and `end`.
    """
    video: OpenVideo
    if record.frames is not None:
        video = FrameArray(record.frames, frame_rate, record.path)
    elif record.position is not None:
        name, data = f"{record.path} row {record.position}", read_video(record.path, record.position, record.sha256)
        if record.feature:
            video = CompressedFrames(tfds.example(data)[record.feature].bytes_list.value, frame_rate, name)
        else:
            video = Video(data, name=name, strict=True, limit_seconds=limit_seconds)
    elif os.path.isdir(record.path):
        video = FrameFolder(record.path, frame_rate)
    else:
        if is_address(record.path):
            stream = ", or give it as --video to --mode=predict" if is_stream(record.path) else ""
            raise DecodeError(
                f"{record.path} is an address, and clips are read from files. Copy it to this machine{stream}."
            )
        if record.is_part:
            try:
                return VideoPart(record.path, record.start or 0.0, record.end, limit_seconds=limit_seconds)
            except CannotSeek:
                pass
        video = Video(record.path, limit_seconds=limit_seconds)
    if record.is_part:
        return _part(video, record)
    if record.start is None or record.end is None or video.duration <= record.end - record.start + _SPARE_SECONDS:
        return video
    if record.start >= video.duration:
        raise DecodeError(f"{record.path}: lasts {video.duration:g} s, but its clip starts at {record.start:g} s.")
    # The frame on screen at the start comes first, even if it began before.
    first = int(np.searchsorted(video.times, record.start + TOLERANCE, side="right")) - 1
    stop = int(np.searchsorted(video.times, record.end - TOLERANCE))
    return Cut(video, first, max(stop, first + 1), record.path)


def _part(video: OpenVideo, record: Record) -> OpenVideo:
    """Returns the frames of a video whose times are from `start` to `end`, `end` excluded, as `VideoPart` does."""
    start, end = record.start or 0.0, record.end
    require_within(record.path, video.duration, start, end)
    first = int(np.searchsorted(video.times, start - TOLERANCE))
    stop = len(video.times) if end is None else int(np.searchsorted(video.times, end - TOLERANCE))
    if first >= stop:
        raise no_frame(record.path, start, end)
    return Cut(video, first, stop, record.path)


class Cut:
    """The frames `first` to `stop` - 1 of a video. Its times and indices start at 0."""

    def __init__(self, video: OpenVideo, first: int, stop: int, path: str):
        times = np.asarray(video.times)
        self._first, self._video, self._path = first, video, path
        self.times = times[first:stop] - times[first]
        self.duration = float((times[stop] if stop < len(times) else video.duration) - times[first])

    def frames(self, indices) -> np.ndarray:
        """Returns (n, y, x, 3) uint8, see `decode.Video.frames`."""
        indices = _checked(indices, self.times, self._path)
        return self._video.frames(self._first + indices)

    def each(self, indices, *, one_limit: bool = False) -> Iterator[np.ndarray]:
        """Yields (y, x, 3) uint8, see `decode.Video.each`."""
        return self._video.each(self._first + _checked(indices, self.times, self._path), one_limit=one_limit)

    def info(self) -> Info:
        """Returns the properties of the whole file."""
        return self._video.info()

    @property
    def decoded(self) -> int:
        """Number of frames that were decoded so far."""
        return self._video.decoded

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `decode.Video.remarks`."""
        return self._video.remarks


class Pictures:
    """A video whose frames are stored one by one; the base class of such videos.

    Attributes:
        times: (n,) float64, seconds from the first frame to each frame.
        duration: seconds, the end of the last frame.
        decoded: number of frames that were decoded so far.
        remarks: ().
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, name, count, frame_rate):
        self._name = name
        self.times = np.arange(count) / frame_rate
        self.duration = count / frame_rate
        self.decoded, self._shape = 0, None

    def frames(self, indices) -> np.ndarray:
        """Returns the frames of the given indices, which may be in any order and repeat; each is decoded once.

        Returns:
            (n, y, x, 3) uint8, red, green, blue.

        Raises:
            IndexError: an index is outside [0, len(times)).
            DecodeError: a frame does not exist, is not a picture, is truncated or too large.
        """
        distinct, inverse = np.unique(_checked(indices, self.times, self._name), return_inverse=True)
        images = [self._image(index) for index in distinct]
        return np.stack(images)[inverse]

    def each(self, indices, *, one_limit: bool = False) -> Iterator[np.ndarray]:
        """Yields the frames one at a time, see `decode.Video.each`. There is no limit of time."""
        del one_limit
        for index, group in itertools.groupby(_checked(indices, self.times, self._name).tolist()):
            image = self._image(index)
            for _ in group:
                yield image
            del image  # before the next frame is decoded

    def info(self) -> Info:
        """Returns the properties of the first frame. Raises DecodeError as `frames` does."""
        data, name = self._data(0)
        height, width, _ = _decoded(data, name).shape
        return Info("png" if data.startswith(_PNG) else "mjpeg", width, height, 0, False)

    def _image(self, index):
        """Returns the frame with this index, (y, x, 3) uint8, scaled to the size of the first frame, as ffmpeg does."""
        data, name = self._data(index)
        image = _decoded(data, name)
        self.decoded += 1
        if self._shape is None:
            # Headers are compared, so that the first frame is seldom decoded in vain.
            first = self._data(0) if index else (data, name)
            is_alike = _header_size(data, name) == _header_size(*first)
            self._shape = image.shape if is_alike else _decoded(*first).shape
        if image.shape != self._shape:
            image = cv2.resize(image, self._shape[1::-1], interpolation=cv2.INTER_AREA)
        return image

    def _data(self, index):
        """Returns the content of the file of a frame, and the name of the frame in errors."""
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

    def _data(self, index):
        path = self._files[index]
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                data = file.read()
        except OSError as error:
            raise DecodeError(f"{path}: {error.strerror}.") from error
        # OpenCV fills the rest of a truncated picture with grey and reports no error. In a complete file the end marker
        # (FFD9) follows the last scan marker (FFDA). Neither occurs within compressed data, and the markers of an
        # embedded thumbnail come before.
        is_complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
        if not is_complete:
            raise DecodeError(f"{path}: not a complete JPEG file.")
        return data, path


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

    def _data(self, index):
        return self._files[index], f"{self._name}: frame {index}"


class FrameArray(Pictures):
    """A video whose frames are in memory, decoded.

    Args:
        frames: uint8 (t y x 3), red, green, blue.
        frame_rate: frames per second.
        name: name of the video in errors.

    Raises:
        DecodeError: the frames are too large.
    """

    def __init__(self, frames: np.ndarray, frame_rate: float, name: str):
        check_size(name, *frames.shape[2:0:-1])
        super().__init__(name, len(frames), frame_rate)
        self._frames = frames

    def info(self) -> Info:
        """Returns the size of the frames."""
        return Info("rawvideo", self._frames.shape[2], self._frames.shape[1], 0, False)

    def _image(self, index):
        self.decoded += 1
        return np.ascontiguousarray(self._frames[index])


def _open_at_once(path, flags):
    """Opens a pipe without waiting for a process that writes to it; it is then empty."""
    return os.open(path, flags | os.O_NONBLOCK)


def _decoded(data, name):
    """Returns a picture, (y, x, 3) uint8, turned by its EXIF data."""
    check_size(name, *_header_size(data, name))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise DecodeError(f"{name} is not a picture that can be decoded.")
    return image


def _header_size(data, name):
    """Returns the (width, height) in the header of a PNG or JPEG file, before a turn by its EXIF data."""
    try:
        with (PngImageFile if data.startswith(_PNG) else JpegImageFile)(io.BytesIO(data)) as picture:
            return picture.size
    except _PILLOW_ERRORS as error:
        raise DecodeError(f"{name} is not a picture that can be decoded.") from error


def _checked(indices, times, name):
    indices = np.asarray(indices, np.int64)
    if not (indices.size and 0 <= indices.min() and indices.max() < len(times)):
        raise IndexError(f"{name} has {len(times)} frames, but the indices are {indices}.")
    return indices

"""Opening the video of a record, whatever holds it: a file, a folder of frames, or a row of a shard."""

import itertools
import os
import re
from collections.abc import Iterator

import cv2
import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.decode import Info, Video
from input_pipeline.errors import DecodeError

# A file this much longer than its clip holds more than the clip; cuts at keyframes stay below it.
_SPARE_SECONDS = 1.0
_TOLERANCE = 1e-6  # of times in floating point; far below the time that any frame lasts

_NUMBERED = re.compile(r"(.*?)(\d+)\.jpe?g", re.IGNORECASE)


def open_video(record: Record, *, frame_rate: float = 30.0, limit_seconds: float = 60.0):
    """The video of a record, cut to its `start` and `end` if the file is over a second longer than they are apart.

    Args:
      record: see `annotations.Record`.
      frame_rate: frames per second that frames were extracted at; video files know their own.
      limit_seconds: see `decode.Video`.

    Returns:
      An object with `times`, `duration`, `decoded`, `frames(indices)`, `each(indices)` and `info()`, see
      `decode.Video`.

    Raises:
      DecodeError: it cannot be opened, or ends before `start`.
    """
    if record.feature:
        video = _from_tensorflow_datasets(record, frame_rate)
    elif record.position is not None:
        from input_pipeline import shards  # imports array_record, which only shards need

        video = Video(
            shards.read_video(record.path, record.position),
            name=f"{record.path} row {record.position}",
            strict=True,
            limit_seconds=limit_seconds,
        )
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
    """The part of a video that is on screen from `start` to `end` seconds, with the attributes of the whole."""

    def __init__(self, video, start, end, path):
        times = np.asarray(video.times)
        self._first = int(np.searchsorted(times, start + _TOLERANCE, side="right")) - 1
        stop = max(int(np.searchsorted(times, end - _TOLERANCE)), self._first + 1)
        self._video, self._path = video, path
        self.times = times[self._first : stop] - times[self._first]
        self.duration = float((times[stop] if stop < len(times) else video.duration) - times[self._first])

    def frames(self, indices) -> np.ndarray:
        """(n, y, x, 3) uint8, see `decode.Video.frames`."""
        indices = _checked(indices, self.times, self._path)
        return self._video.frames(self._first + indices)

    def each(self, indices) -> Iterator[np.ndarray]:
        """(y, x, 3) uint8 one after the other, see `decode.Video.each`."""
        return self._video.each(self._first + _checked(indices, self.times, self._path))

    def info(self) -> Info:
        return self._video.info()

    @property
    def decoded(self) -> int:
        return self._video.decoded


class Pictures:
    """A video of frames that are compressed one by one.

    Attributes:
      times: (n,) float64, seconds from the first frame to each.
      duration: seconds, the end of the last frame.
      decoded: frames that were decoded until now.
    """

    def __init__(self, name, count, frame_rate):
        self._name = name
        self.times = np.arange(count) / frame_rate
        self.duration = count / frame_rate
        self.decoded = 0

    def frames(self, indices) -> np.ndarray:
        """Decodes the frames of the given indices, in any order and with repeats, each once.

        Returns:
          (n, y, x, 3) uint8, red, green, blue.

        Raises:
          IndexError: an index outside [0, len(times)).
          DecodeError: a frame is gone, no picture, truncated, or of another size than the others.
        """
        wanted, inverse = np.unique(_checked(indices, self.times, self._name), return_inverse=True)
        images = [self._read(index) for index in wanted]
        self.decoded += len(images)
        if len({image.shape for image in images}) > 1:
            raise DecodeError(f"{self._name}: the frames are not of one size.")
        return np.stack(images)[inverse]

    def each(self, indices) -> Iterator[np.ndarray]:
        """The frames one at a time, see `decode.Video.each`."""
        shape = None
        for index, group in itertools.groupby(_checked(indices, self.times, self._name).tolist()):
            image = self._read(index)
            self.decoded += 1
            if image.shape != (shape := shape or image.shape):
                raise DecodeError(f"{self._name}: the frames are not of one size.")
            for _ in group:
                yield image

    def _read(self, index):
        """The frame of that index, (y, x, 3) uint8."""
        raise NotImplementedError


class FrameFolder(Pictures):
    """A video that lies in a folder as JPEG files, numbered from 0 or from 1 with any number of leading zeros.

    Args:
      path: folder. What else lies in it is left alone.
      frame_rate: frames per second.

    Raises:
      DecodeError: there are no frames, one is missing in between, or their names have several patterns.
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
            raise DecodeError(f"{path}: the folder holds frames of several names, {prefixes[0]}* and {prefixes[1]}*.")
        matches.sort(key=lambda match: int(match[2]))
        numbers = [int(match[2]) for match in matches]
        for expected, (number, match) in enumerate(zip(numbers, matches, strict=True), start=min(numbers[0], 1)):
            if number < expected:
                raise DecodeError(f"{path}: {match[0]} is there under two names.")
            if number > expected:
                width = len(matches[0][2])
                raise DecodeError(
                    f"{path}: the frame {match[1]}{expected:0{width}}{os.path.splitext(match[0])[1]} is missing."
                )
        super().__init__(path, len(matches), frame_rate)
        self._files = [os.path.join(path, match[0]) for match in matches]

    def info(self) -> Info:
        """What the first frame tells. Raises DecodeError as `frames` does."""
        height, width, _ = self._read(0).shape
        return Info("mjpeg", width, height, 0, False)

    def _read(self, index):
        path = self._files[index]
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise DecodeError(f"{path}: {error.strerror}.") from error
        # OpenCV fills the rest of a truncated picture with grey. The marker of the end comes after that of the last
        # scan, and neither occurs within the compressed data; a thumbnail's lie before.
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if whole else None
        if image is None:
            raise DecodeError(f"{path}: not a whole JPEG file.")
        return image


class CompressedFrames(Pictures):
    """A video whose frames are in memory as files of a format of pictures, PNG or JPEG.

    Args:
      files: the frames, bytes each.
      frame_rate: frames per second.
      name: of the video in errors.

    Raises:
      DecodeError: there are no frames.
    """

    def __init__(self, files, frame_rate, name):
        if not files:
            raise DecodeError(f"{name}: it holds no frames.")
        super().__init__(name, len(files), frame_rate)
        self._files = files

    def info(self) -> Info:
        """What the first frame tells. Raises DecodeError as `frames` does."""
        height, width, _ = self._read(0).shape
        return Info("png" if self._files[0].startswith(b"\x89PNG") else "mjpeg", width, height, 0, False)

    def _read(self, index):
        image = cv2.imdecode(np.frombuffer(self._files[index], np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise DecodeError(f"{self._name}: frame {index} is no picture that can be decoded.")
        return image


def _from_tensorflow_datasets(record, frame_rate):
    from input_pipeline import shards
    from input_pipeline.sources import tfds

    name = f"{record.path} row {record.position}"
    files = tfds.example(shards.read_video(record.path, record.position))[record.feature].bytes_list.value
    return CompressedFrames(files, frame_rate, name)


def _checked(indices, times, name):
    indices = np.asarray(indices, np.int64)
    if not (indices.size and 0 <= indices.min() and indices.max() < len(times)):
        raise IndexError(f"{name} has {len(times)} frames; indices {indices}")
    return indices

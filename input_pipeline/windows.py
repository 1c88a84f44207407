"""Windows of a video of any length: the clip of each stretch of time, cut from frames that are decoded once.

Window k covers the seconds from `start + k every` to `start + k every + seconds`, as long as it ends before the video.
The last window ends with the video. The clip of a window is that of a list with the same `start` and `end`: the sampler
takes its frames as it does of a file that holds no others.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from input_pipeline.errors import DecodeError
from input_pipeline.sampling import Sampler
from input_pipeline.stream import Frame
from input_pipeline.video_part import TOLERANCE
from input_pipeline.videos import OpenVideo

_SMALL = 1e-2  # seconds at the end of a video that need no window of their own


class FrameSource(Protocol):
    """The interface of `stream.FrameStream` and `StoredFrames`; the former describes the attributes."""

    is_live: bool
    rate: float | None
    length: float | None
    end: float
    problem: str

    @property
    def remarks(self) -> tuple[str, ...]: ...

    def frames(self, convert: Callable[[np.ndarray], np.ndarray], start: float = 0.0) -> Iterator[Frame]: ...

    def close(self) -> None: ...


class StoredFrames:
    """The frames of a folder of pictures, or of an array, one after the other, see `stream.FrameStream`."""

    is_live, problem = False, ""
    remarks: tuple[str, ...] = ()

    def __init__(self, video: OpenVideo):
        self._video = video
        self.rate: float | None = len(video.times) / video.duration
        self.length: float | None = video.duration
        self.end = video.duration

    def frames(self, convert: Callable[[np.ndarray], np.ndarray], start: float = 0.0) -> Iterator[Frame]:
        """Yields the frames from the one on screen at `start` seconds. A picture that cannot be decoded is damaged."""
        times = self._video.times
        if start >= self.end:
            return
        for number in range(int(np.searchsorted(times, start, side="right")) - 1, len(times)):
            try:
                (image,) = self._video.frames([number])
            except DecodeError:
                yield Frame(float(times[number]), None)
            else:
                yield Frame(float(times[number]), convert(image))

    def close(self) -> None:
        """Does nothing: no file is open."""


class Window(NamedTuple):
    """A window of a video.

    Attributes:
        start, end: seconds from the first frame of the video.
        video: uint8 (v t y x 3), the views of the clip, or None if one of its frames is damaged.
        index: (v t), the frames of the clip, counted from the first one in the window.
    """

    start: float
    end: float
    video: np.ndarray | None
    index: np.ndarray


class Cutter:
    """Cuts the windows of a video.

    Args:
        sampler: chooses the frames of a clip.
        clips: clips of a window, which the sampler spreads over it.
        crop: function of an image (y x 3) that returns its crops (c y x 3), uint8.
        seconds: length of a window.
        every: seconds from the start of a window to the start of the next.
        start: seconds at which the first window starts.
        end: seconds at which the last window ends at the latest, or None for the end of the video.
        seed: see `sampling.Sampler`.
    """

    def __init__(
        self,
        sampler: Sampler,
        clips: int,
        crop: Callable[[np.ndarray], np.ndarray],
        *,
        seconds: float,
        every: float,
        start: float = 0.0,
        end: float | None = None,
        seed: int = 0,
    ):
        self._sampler, self._clips, self._crop, self._seed = sampler, clips, crop, seed
        self.seconds, self.every, self.start = seconds, every, start
        self._limit = float("inf") if end is None else end

    def __call__(self, source: FrameSource, first: int = 0) -> Iterator[Window]:
        """Yields the windows of a video from number `first` on. A video shorter than a window has one window.

        Each window is yielded when the first frame after it is decoded. In memory are the crops of the frames of one
        window.

        Raises:
            DecodeError: no frame can be decoded.
        """
        number, kept = first, []
        for frame in source.frames(self._crop, max(self.start, self.start + (first - 1) * self.every)):
            while (end := self._end(number)) <= min(self._limit, frame.time) + TOLERANCE:
                yield self._cut(kept, end - self.seconds, end, frame.time)
                number += 1
            if frame.time >= self._limit - TOLERANCE:
                ended, stop = self._limit, frame.time
                break
            kept.append(frame)
            # The next window and a last one, which ends with the video, need the frames on screen from here on.
            oldest = min(end, frame.time) - self.seconds
            while len(kept) > 1 and kept[1].time <= oldest + TOLERANCE:
                del kept[0]
        else:
            ended, stop = min(source.end, self._limit), source.end
        if not kept or ended - self.start < TOLERANCE:
            return
        while (end := self._end(number)) <= ended + TOLERANCE:
            yield self._cut(kept, end - self.seconds, end, stop)
            number += 1
        if number == 0 or ended - self._end(number - 1) > _SMALL:
            yield self._cut(kept, max(ended - self.seconds, self.start), ended, stop)

    def is_regular(self, start: float) -> bool:
        """Returns whether a window that starts at `start` is not the last one, which ends with the video."""
        number = round((start - self.start) / self.every)
        return abs(self.start + number * self.every - start) < 10 * TOLERANCE  # files round

    def _end(self, number: int) -> float:
        return self.start + number * self.every + self.seconds

    def _cut(self, frames: list[Frame], start: float, end: float, stop: float) -> Window:
        """Returns the window of these seconds.

        Args:
            frames: frames that are on screen from `start` or before, up to `end`.
            start, end: the seconds of the window.
            stop: seconds, the end of the last frame.
        """
        times = np.array([frame.time for frame in frames])
        first, last = (int(np.searchsorted(times, seconds - TOLERANCE)) for seconds in (start, end))
        if first >= last:  # no frame begins in a pause of the video: its frame is the one on screen
            first, last = max(last - 1, 0), max(last, 1)
        stop = times[last] if last < len(times) else stop
        index = self._sampler.test(times[first:last] - times[first], stop - times[first], self._clips, self._seed)
        images = [[frames[first + position].image for position in clip] for clip in index]
        if any(image is None for clip in images for image in clip):
            return Window(start, end, None, index)
        views = np.moveaxis(np.array(images), 2, 1)  # (clips, crops, t, y, x, 3)
        return Window(start, end, views.reshape(-1, *views.shape[2:]), np.repeat(index, views.shape[1], axis=0))

"""Predicting the windows of a video, a camera or a stream."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from input_pipeline import Pipeline
from input_pipeline.ahead import Ahead
from input_pipeline.annotations import Record
from input_pipeline.augment import test_crops
from input_pipeline.batches import video_seed
from input_pipeline.errors import DecodeError
from input_pipeline.paths import is_live
from input_pipeline.samplers import SEGMENTS
from input_pipeline.sources.files import is_frame, list_folder
from input_pipeline.stream import FrameStream
from input_pipeline.videos import open_video
from input_pipeline.windows import Cutter, FrameSource, StoredFrames, Window
from vidformers.errors import ConfigError, require
from vidformers.inference.timeline.segments import WindowPrediction
from vidformers.training.evaluate import EvalProtocol

_WAITING = 2  # windows of a live video that wait for the model

Compute = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Windows:
    """The windows of a video and their predictions.

    Args:
        record: the video: the path of a file or of a folder of frames, a camera or a stream, or frames in memory.
        data: the config section `data`, which says how a clip is cut.
        protocol: the config section `eval`: the views of each window.
        median_seconds: function that returns the median length of the training clips, or None if it is not known.
        every: seconds from the start of a window to the start of the next.
        seconds: length of a window. None is frames x stride with dense sampling, and else `median_seconds`.
        start, end: seconds of the video between which the windows lie. None is its end.
    Attributes:
        is_live: whether the video is a camera, a stream or a pipe.
        source: where frames are read from, or None before a live video is opened.
        cutter: cuts the windows, or None before a live video is opened.
        dropped: number of windows of a live video that were dropped because the model is too slow.
    Raises:
        ConfigError: an argument is out of range, the length of a window is not known, or a file cannot be decoded.
    """

    def __init__(
        self,
        record: Record,
        data: dict[str, Any],
        protocol: EvalProtocol,
        median_seconds: Callable[[], float | None],
        *,
        every: float = 1.0,
        seconds: float | None = None,
        start: float = 0.0,
        end: float | None = None,
    ):
        for name, value in (("every", every), ("window", seconds)):
            require(value is None or 1e-3 <= value < 1e6, f"--{name}={value} must be seconds from 0.001 to 1,000,000.")
        require(0 <= start < 1e9, f"--from={start} must be seconds from 0 on.")
        require(end is None or start < end < 1e9, f"--to={end} must be seconds after --from={start}.")
        self._record, self._pipeline, self._protocol = record, Pipeline(**data | {"workers": 0}), protocol
        self._median, self._every, self._seconds, self._span = median_seconds, every, seconds, (start, end)
        self.is_live = record.frames is None and is_live(record.path)
        self.source: FrameSource | None = None
        self.cutter: Cutter | None = None
        self.dropped, self._is_read = 0, False
        if not self.is_live:
            self._open()

    def _open(self) -> None:
        pipeline, record = self._pipeline, self._record
        is_folder = record.frames is None and os.path.isdir(record.path)
        require(
            not is_folder or any(map(is_frame, list_folder(record.path))),
            f"{record.path} is a folder without numbered JPEG frames, and windows are those of one video. Give one.",
        )
        try:
            if record.frames is not None or is_folder:
                video = open_video(record, frame_rate=pipeline.frame_rate, limit_seconds=pipeline.limit_seconds)
                self.source = StoredFrames(video)
            else:
                self.source = FrameStream(record.path, limit_seconds=pipeline.limit_seconds)
        except DecodeError as error:
            raise ConfigError(str(error)) from None
        start, end = self._span
        self.cutter = Cutter(
            pipeline.test_sampler(self._protocol.frames),
            self._protocol.clips,
            partial(_crops, pipeline=pipeline, crops=self._protocol.crops),
            seconds=self._seconds or self._window_seconds(self.source.rate),
            every=self._every,
            start=start,
            end=end,
            seed=video_seed(record),
        )

    def _window_seconds(self, rate: float | None) -> float:
        """Returns the seconds of a clip in training. `rate` is that of the file in frames per second."""
        pipeline = self._pipeline
        if pipeline.sampling in SEGMENTS or self._protocol.frames is not None:
            median = self._median()
            if median is None:
                raise ConfigError(
                    "Clips are spread over whole videos, and the length of the training videos is not known. Give the "
                    "seconds of a window with --window."
                )
            return median
        rate = pipeline.fps or rate
        require(bool(rate), f"{self._record.path} gives no frame rate. Give the seconds of a window with --window.")
        return pipeline.frames * pipeline.stride / float(rate)

    @property
    def count(self) -> int:
        """The number of windows by the length that the file gives, or 0 if it is not known."""
        start, end = self._span
        if self.source is None or self.source.length is None:
            return 0
        covered = min(self.source.length, end or float("inf")) - start - self.cutter.seconds
        return max(int(np.ceil(covered / self._every - 1e-3)), 0) + 1

    @property
    def nothing(self) -> str:
        """Why a video has no window, as a sentence, after it was read."""
        path, source, start = self._record.path, self.source, self._span[0]
        if source is not None and source.problem:
            return f"{path} has no window: {source.problem}."
        if source is not None and start:
            return f"{path} ends before --from={start:g}, after {source.end:.1f} s."
        return f"{path} has no window."

    def predictions(
        self, compute: Compute, batch_size: int, first: int = 0, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[WindowPrediction]:
        """Yields the predictions of the windows from number `first` on.

        A thread decodes ahead. Windows of a live video are predicted one by one when they come.

        Args:
            compute: `Predictor.compute`.
            batch_size: windows of a file that are predicted together.
            first: the number of windows to skip.
            stopped: function that returns whether to wait for no further windows.

        Raises:
            ConfigError: no frame can be decoded, or a live video cannot be opened.
        """
        self._is_read = True
        size = 1 if self.is_live else batch_size
        items = Ahead(
            partial(self._cut, first), _WAITING if self.is_live else size, _end if self.is_live else None, stopped
        )
        try:
            while batch := list(islice(items, size)):
                self.dropped = items.dropped
                whole = [window for window in batch if window.video is not None]
                found: Iterator[np.ndarray] = iter(())
                if whole:
                    views = np.stack([window.video for window in whole])
                    found = iter(compute(views, np.stack([window.index for window in whole]))[0])
                for window in batch:
                    yield WindowPrediction(window.start, window.end, None if window.video is None else next(found))
        except DecodeError as error:
            raise ConfigError(str(error)) from None
        finally:
            items.close()
            self.dropped = items.dropped

    def close(self) -> None:
        """Closes the video, unless `predictions` has been called, which does it at its end."""
        if not self._is_read and self.source is not None:
            self.source.close()

    def _cut(self, first: int) -> Iterator[Window]:
        """Yields the windows, in the thread that decodes, which closes the source at the end."""
        if self.source is None:
            self._open()
        try:
            yield from self.cutter(self.source, first)
        finally:
            self.source.close()


def _end(window: Window) -> float:
    return window.end


def _crops(image: np.ndarray, *, pipeline: Pipeline, crops: int) -> np.ndarray:
    """Returns the test crops of an image, (c y x 3), as `batches.load_val_row` makes them."""
    return test_crops(image[None], pipeline.size, crops, pipeline.test_short_side, pipeline.resize)[:, 0]

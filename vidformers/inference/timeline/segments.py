"""Segments: stretches of a video in which a class is predicted, and captions of them."""

import datetime
import html
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from input_pipeline.text import printable

_TOLERANCE = 1e-6  # seconds


class WindowPrediction(NamedTuple):
    """The prediction for one window of a video.

    Attributes:
        start, end: seconds from the first frame of the video.
        probabilities: (classes), averaged over the views, or None if a frame of the clip is damaged.
    """

    start: float
    end: float
    probabilities: np.ndarray | None

    @property
    def centre(self) -> float:
        return (self.start + self.end) / 2


class Segment(NamedTuple):
    """A stretch of a video in which a class is predicted.

    Attributes:
        name: the class.
        start, end: seconds from the first frame of the video.
        probability: that of the class, averaged over the stretch.
        peak: the highest probability of the class in a window.
    """

    name: str
    start: float
    end: float
    probability: float
    peak: float


class _Run(NamedTuple):
    """A segment that the next window may prolong. `weight` is the integral of the probability over the time."""

    start: float
    end: float
    weight: float
    peak: float


class Segments:
    """Makes segments of windows, which are added in order.

    A window stands for the time from halfway to the window before to halfway to the next, measured between the centres,
    and at most for half of `every` to each side. The first window also stands for the time from its own start, and the
    last for the time to its own end. Stretches of a class that touch are merged.

    Args:
        classes: class names by label.
        threshold: the least probability of a class in a window that it is predicted in.
        shortest: seconds; shorter segments are left out.
        every: seconds from one window to the next.
        several_labels: whether a window has every class above the threshold, instead of only the likeliest one.
    Attributes:
        count: number of windows.
        damaged: number of windows without a prediction.
        peak: the highest probability of any class, or 0 before the first window.
        peak_window: the window that has it, or None.
    """

    def __init__(
        self, classes: tuple[str, ...], threshold: float, shortest: float, every: float, several_labels: bool = False
    ):
        self.threshold, self.shortest = threshold, shortest
        self._classes, self._every, self._several_labels = classes, every, several_labels
        self._before: tuple[float, WindowPrediction] | None = None  # where the stretch of the last window begins
        self._runs: dict[int, _Run] = {}
        self._found: list[tuple[float, int, Segment]] = []
        self.count, self.damaged, self.peak = 0, 0, 0.0
        self.peak_window: WindowPrediction | None = None

    def add(self, window: WindowPrediction) -> None:
        """Adds the next window."""
        begin = window.start
        if self._before is not None:
            half = min(window.centre - self._before[1].centre, self._every) / 2
            self._close(self._before[1].centre + half)
            begin = window.centre - half
        self._before = begin, window
        self.count += 1
        self.damaged += window.probabilities is None
        if window.probabilities is not None and window.probabilities.max() > self.peak:
            self.peak, self.peak_window = float(window.probabilities.max()), window

    def finish(self) -> list[Segment]:
        """Returns all segments, by their start, after the last window."""
        if self._before is not None:
            self._close(self._before[1].end)
            self._before = None
        for label in list(self._runs):
            self._keep(label)
        return [segment for _, _, segment in sorted(self._found)]

    def _close(self, end: float) -> None:
        """Ends the stretch of the last window at `end`."""
        begin, window = self._before
        found = {} if window.probabilities is None else self._above(window.probabilities)
        for label, run in list(self._runs.items()):
            if label not in found or run.end < begin - _TOLERANCE:
                self._keep(label)
        for label, probability in found.items():
            run = self._runs.get(label, _Run(begin, begin, 0.0, 0.0))
            weight = run.weight + probability * (end - begin)
            self._runs[label] = _Run(run.start, end, weight, max(run.peak, probability))

    def _above(self, probabilities: np.ndarray) -> dict[int, float]:
        """Returns the probabilities of the labels of a window."""
        candidates = range(len(probabilities)) if self._several_labels else [int(probabilities.argmax())]
        return {label: float(probabilities[label]) for label in candidates if probabilities[label] >= self.threshold}

    def _keep(self, label: int) -> None:
        run = self._runs.pop(label)
        if run.end - run.start >= self.shortest - _TOLERANCE:
            mean = run.weight / (run.end - run.start) if run.end > run.start else run.peak
            segment = Segment(self._classes[label], run.start, run.end, mean, run.peak)
            self._found.append((run.start, label, segment))


def captions(segments: list[Segment]) -> str:
    """Returns the segments as WebVTT, one cue each with the name of the class."""
    return "\n".join(["WEBVTT\n", *_cues(segments)])


def _cues(segments: list[Segment]) -> Iterator[str]:
    for segment in segments:
        start = round(1000 * segment.start)
        end = max(round(1000 * segment.end), start + 1)  # a cue must end after its start
        name = html.escape(printable(segment.name), quote=False)
        yield f"{_timestamp(start)} --> {_timestamp(end)}\n{name}\n"


def _timestamp(milliseconds: int) -> str:
    """Returns a time of WebVTT, such as 00:01:02.500."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{rest:03d}"


def clock(seconds: float, decimals: int = 1) -> str:
    """Returns a time as players show it, rounded: 0:01:02.5, or 0:01:03 without decimals."""
    whole, rest = divmod(round(seconds * 10**decimals), 10**decimals)
    return str(datetime.timedelta(seconds=whole)) + (f".{rest:0{decimals}d}" if decimals else "")


class Timeline(NamedTuple):
    """The predictions for a video of any length.

    Attributes:
        windows: the windows, in order.
        segments: the segments that they make, by their start.
    """

    windows: list[WindowPrediction]
    segments: list[Segment]

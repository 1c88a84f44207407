"""Sampling: chooses the frames of a clip from the times of the frames, without opening the video.

A frame is on screen from its own time until the time of the next frame, and the last frame until `duration`. `Uniform`
and `Dense` choose instants in seconds and take the frame on screen at each instant. A variable frame rate therefore
needs no special case, unless a few frames fill most of the video, see `steady_times`. The rules of `frame_rules` are
those of published code and count frames.

Common arguments:
    times: (n,) float64, ascending, seconds from the first frame to each frame.
    duration: seconds, the end of the last frame.
    seed: seeds the clips of a rule whose test clips are random. The other rules ignore the seed.

Every sampler has a `rule`, a sentence that says which frames the test clips take. Its letters: n frames in the file,
T frames in a clip with index i = 0..T-1, K clips with index k = 0..K-1, s the stride.
"""

import dataclasses
from typing import Protocol

import numpy as np

from input_pipeline.errors import DataError

# Because of rounding, an instant that should equal the time of a frame can be slightly smaller or larger. A microsecond
# is far above the rounding error and far below the duration of any frame.
_TOLERANCE = 1e-6

# Seconds. Many containers round times to a millisecond.
_ROUNDING = 1e-3

# The last sentence of the rules that choose instants.
STEADY_RULE = (
    "If a single frame, or up to a twentieth of the frames, each over 20 times as long as the median frame, fills more "
    "than half of the duration, all frames count as equally long."
)


class Sampler(Protocol):
    """The interface of all samplers."""

    @property
    def frames(self) -> int: ...

    @property
    def rule(self) -> str: ...

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray: ...

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Takes one instant in each of `frames` equal segments of the whole video.

    In training the instant is random, in testing fixed. Segments are intervals of time, not of indices: no frame is
    left out by rounding, and a video with fewer frames than segments shows some frames more than once.

    The segments are those of Temporal Segment Networks (Wang et al., ECCV 2016).
    """

    frames: int

    def __post_init__(self):
        check_count("data.frames", self.frames)

    @property
    def rule(self) -> str:
        return (
            "The video is divided into T segments of equal duration. Clip k takes from each segment the frame that is "
            "on screen at the fraction (k + 1/2) / K of the segment. " + STEADY_RULE
        )

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """Returns ascending indices, (frames,) int64: a random instant in each segment."""
        times, duration = steady_times(times, duration)
        instants = (np.arange(self.frames) + rng.random(self.frames)) * (duration / self.frames)
        return _on_screen(times, instants)

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray:
        """Returns (clips, frames) int64 indices: in every segment, clip k takes the instant at the fraction
        (k + 1/2) / clips of its length.

        A single clip takes the centres. Several clips use different offsets inside each segment, so they show different
        frames wherever a segment has enough of them.
        """
        check_count("eval.clips", clips)
        times, duration = steady_times(times, duration)
        within = (np.arange(clips) + 0.5) / clips
        return _on_screen(times, (np.arange(self.frames) + within[:, None]) * (duration / self.frames))


@dataclasses.dataclass(frozen=True)
class Dense:
    """Takes `frames` instants that are `stride` frames apart, from one contiguous segment of the video.

    A video shorter than the clip starts at its first frame and repeats its last.

    Attributes:
        frames: frames of a clip.
        stride: frames from one instant to the next.
        fps: frames per second at which the stride counts, so that a clip spans the same time in every file. None
            counts the frames of the file, at their average rate.
        test_starts: where test clips start, 'spread' or 'from_first', see `test`.
    """

    frames: int
    stride: int
    fps: float | None = None
    test_starts: str = "spread"

    def __post_init__(self):
        check_count("data.frames", self.frames)
        check_count("data.stride", self.stride)
        check_fps(self.fps)
        check_test_starts(self.test_starts)

    @property
    def rule(self) -> str:
        rate = "the average frame rate of the file" if self.fps is None else f"{self.fps:g} frames per second"
        if self.test_starts == "from_first":
            start = "k / K x (D - T s)"
        else:
            start = "k / (K - 1) x E, or E / 2 if K is 1, where E is the time of the last frame less (T - 1) s"
        return (
            f"Times are counted in frames at {rate}, s is {self.stride}, and D is the duration. Clip k starts at "
            f"{start}, but not before 0. Its frame i is on screen at start + i s, or is the last frame. {STEADY_RULE}"
        )

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """Returns ascending indices, (frames,) int64. The start is uniform over all starts at which the clip fits."""
        times, duration = steady_times(times, duration)
        offsets = self._offsets(times, duration)
        start = rng.random() * max(duration - offsets[-1], 0.0)
        return _on_screen(times, start + offsets)

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray:
        """Returns (clips, frames) int64 indices of clips with evenly spaced starts.

        'spread': evenly from 0 to the latest start whose last instant is not after the last frame. A single clip is
        centred.

        'from_first': clip k of K starts at k / K x (duration - frames x stride, in seconds). A single clip is the
        beginning of the video, and no clip reaches the end of the video.
        """
        check_count("eval.clips", clips)
        times, duration = steady_times(times, duration)
        offsets = self._offsets(times, duration)
        if self.test_starts == "from_first":
            slack = max(duration - self.frames * self._stride_seconds(times, duration), 0.0)
        else:
            slack = max(times[-1] - offsets[-1], 0.0)
        return _on_screen(times, clip_starts(self.test_starts, slack, clips)[:, None] + offsets)

    def _offsets(self, times, duration):
        """Returns (frames,) seconds from the first instant of the clip to each instant."""
        return np.arange(self.frames) * self._stride_seconds(times, duration)

    def _stride_seconds(self, times, duration):
        return self.stride * (duration / len(times) if self.fps is None else 1 / self.fps)


def filling_intervals(times, duration) -> np.ndarray:
    """Returns the intervals of the few frames that fill more than half of the duration, or an empty array.

    These are a single frame, or up to a twentieth of the frames, each over 20 times as long as the median frame. Such
    times are those of recordings that were paused or spliced, of cameras that lost the connection, and of damaged
    clocks. Samplers that choose instants would take these few frames again and again. A video of one frame has none.
    """
    intervals = np.sort(np.diff(times, append=duration))[::-1]
    longest = intervals[: max(1, len(intervals) // 20)]
    gaps = longest[: max(1, np.count_nonzero(longest > 20 * intervals[len(intervals) // 2]))]
    return gaps if len(intervals) > 1 and gaps.sum() > duration / 2 + _ROUNDING else gaps[:0]


def sampling_remark(times, duration) -> str:
    """Returns a sentence if `steady_times` differ from the times of the file, or else an empty string."""
    gaps = filling_intervals(times, duration)
    if not len(gaps):
        return ""
    verb = "fills" if len(gaps) == 1 else "fill"
    return (
        f"{len(gaps)} of {len(times)} frames {verb} {gaps.sum() / duration:.0%} of the duration. "
        "Clips are sampled by the numbers of frames instead of their times."
    )


def steady_times(times, duration) -> tuple[np.ndarray, float]:
    """Returns the times and the duration that instants are chosen from.

    These are those of the file, unless `filling_intervals` finds frames. Then all frames last as long as the median
    frame of the file, and at least a millisecond. Instants at equal distances then give frames at equal distances.
    """
    if not len(filling_intervals(times, duration)):
        return times, duration
    interval = max(float(np.median(np.diff(times, append=duration))), _ROUNDING)
    return np.arange(len(times)) * interval, len(times) * interval


def _on_screen(times, instants):
    """Returns the index of the last frame whose time is at or before each instant."""
    indices = np.searchsorted(np.asarray(times) - _TOLERANCE, instants, side="right") - 1
    return np.clip(indices, 0, len(times) - 1).astype(np.int64)


def clip_starts(test_starts: str, slack: float, clips: int) -> np.ndarray:
    """Returns the starts of K test clips, (clips,) float64.

    Args:
        test_starts: 'from_first': clip k starts at k / K x slack. 'spread': clip k starts at k / (K - 1) x slack, and a
            single clip at slack / 2.
        slack: the latest start at which a clip fits.
        clips: K.
    """
    if test_starts == "from_first":
        return slack * np.arange(clips) / clips
    return np.linspace(0.0, slack, clips) if clips > 1 else np.array([slack / 2])


def check_count(field: str, value) -> None:
    """Raises DataError unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{field} must be a whole number of at least 1, but is {value!r}.")


def check_fps(value) -> None:
    """Raises DataError unless `value` is a positive number or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < float("inf")):
        raise DataError(f"data.fps must be frames per second above 0, or None, but is {value!r}.")


def check_test_starts(value) -> None:
    """Raises DataError unless `value` is 'spread' or 'from_first'."""
    if value not in ("spread", "from_first"):
        raise DataError(f"data.test_starts must be 'spread' or 'from_first', but is {value!r}.")

"""Which frames of a video make a clip. Pure arithmetic on the frames' times; nothing is read.

A frame is on screen from its own time until the next one's, and the last until `duration`. Both schemes
choose instants in seconds and take the frame on screen, so that a variable frame rate needs no special case.

Common arguments:
  times: (n,) float64, ascending, seconds since the first frame.
  duration: seconds, the end of the last frame.
"""

import dataclasses

import numpy as np

from input_pipeline.errors import DataError

# Instants that should fall exactly on a frame's time land on either side of it in floating point. A
# microsecond is far above that error and far below the time that any frame lasts.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Uniform:
    """`frames` instants over the whole video, one in each of as many equal segments.

    The segments of Temporal Segment Networks (Wang et al., ECCV 2016): a random instant of each in training,
    a fixed one in testing. Segments are intervals of time, not of indices: no frame is left out by rounding,
    and a video with fewer frames than segments shows some of them more than once.
    """

    frames: int

    def __post_init__(self):
        _check_count("data.frames", self.frames)

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """(frames,) int64 indices, ascending: a random instant of each segment."""
        instants = (np.arange(self.frames) + rng.random(self.frames)) * (duration / self.frames)
        return _on_screen(times, instants)

    def test(self, times, duration, clips: int) -> np.ndarray:
        """(clips, frames) int64 indices: clip k takes the instant (k + 1/2) / clips of every segment.

        One clip takes the centres. Several clips interleave, and differ wherever a segment has enough
        frames; taking the centres for each of them would score one clip several times.
        """
        _check_count("eval.clips", clips)
        within = (np.arange(clips) + 0.5) / clips
        return _on_screen(times, (np.arange(self.frames) + within[:, None]) * (duration / self.frames))


@dataclasses.dataclass(frozen=True)
class Dense:
    """`frames` instants `stride` frames apart, from one stretch of the video.

    The stride counts frames at `fps` frames per second, so that a clip spans the same time in every file;
    None counts the file's own frames (their average rate). A video shorter than the clip starts at its first
    frame and holds its last.

    `test_starts` is the rule for test clips, see `test`: 'spread', or 'from_first', the one in the code of
    SlowFast, TimeSformer and VTN, with which their figures were made.
    """

    frames: int
    stride: int
    fps: float | None = None
    test_starts: str = "spread"

    def __post_init__(self):
        _check_count("data.frames", self.frames)
        _check_count("data.stride", self.stride)
        number = isinstance(self.fps, (int, float)) and not isinstance(self.fps, bool)
        if self.fps is not None and not (number and 0 < self.fps < float("inf")):
            raise DataError(f"data.fps must be frames per second above 0, or None, but is {self.fps!r}.")
        if self.test_starts not in ("spread", "from_first"):
            raise DataError(f"data.test_starts must be 'spread' or 'from_first', but is {self.test_starts!r}.")

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """(frames,) int64 indices, ascending: the start is uniform over all that leave room for the clip."""
        offsets = self._offsets(times, duration)
        start = rng.random() * max(duration - offsets[-1], 0.0)
        return _on_screen(times, start + offsets)

    def test(self, times, duration, clips: int) -> np.ndarray:
        """(clips, frames) int64 indices of clips with evenly spaced starts.

        'spread': from the first possible start to the last possible, both included; one clip lies in the
        centre. 'from_first': clip k of K starts at k / K of the room that a clip of frames x stride leaves, so
        that one clip is the very beginning of the video, and no number of them reaches its end.
        """
        _check_count("eval.clips", clips)
        offsets = self._offsets(times, duration)
        if self.test_starts == "from_first":
            room = max(duration - self.frames * self._stride_seconds(times, duration), 0.0)
            starts = room * np.arange(clips) / clips
        else:
            room = max(times[-1] - offsets[-1], 0.0)
            starts = np.linspace(0.0, room, clips) if clips > 1 else np.array([room / 2])
        return _on_screen(times, starts[:, None] + offsets)

    def _offsets(self, times, duration):
        """(frames,) seconds from the first instant of the clip to each."""
        return np.arange(self.frames) * self._stride_seconds(times, duration)

    def _stride_seconds(self, times, duration):
        return self.stride * (duration / len(times) if self.fps is None else 1 / self.fps)


def _on_screen(times, instants):
    """The index of the last frame whose time is at or before each instant."""
    indices = np.searchsorted(np.asarray(times) - _TOLERANCE, instants, side="right") - 1
    return np.clip(indices, 0, len(times) - 1).astype(np.int64)


def _check_count(field, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{field} must be a whole number of at least 1, but is {value!r}.")

"""Sampling rules of published code, which count the frames of the file.

The public code of a paper decides which frames its figures were computed with. Each class below is one such rule and
names the repository, file and function that it follows. The letters are those of `sampling`: n frames in the file,
T frames in a clip, K clips, s the stride. Only `SlowFast` takes the frame rate of the file into account. The other
rules take the same frames whatever the rate.
"""

import abc
import dataclasses

import numpy as np

from input_pipeline.frame_rate import frame_rate
from input_pipeline.sampling import (
    STEADY_RULE,
    check_count,
    check_fps,
    check_test_starts,
    clip_starts,
    steady_times,
)

# Frames. An index that should be whole can be slightly smaller because of rounding.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class SlowFast:
    """Spreads the T frames of a clip from the first to the last frame of a segment of L frames.

    Frame i is floor(start + i (L - 1) / (T - 1)), but at most n - 1. L = T s x (rate of the file) / fps, which is not
    rounded. The rate of a file whose rate varies is the average. Frames are slightly more than s frames apart: with
    T = 8, s = 32 and 30 frames per second, a clip from 0 takes 0 36 72 109 145 182 218 255.

    Source: facebookresearch/SlowFast, slowfast/datasets/decoder.py, `get_start_end_idx` and `temporal_sampling`, and
    the same functions in facebookresearch/TimeSformer, timesformer/datasets/decoder.py, and bomri/SlowFast (VTN). That
    code decodes only the segment, so that a start between two frames moves to the later one.

    Attributes:
        frames, stride: T and s.
        fps: frames per second at which the stride counts. None: L = T s.
        test_starts: 'from_first', as the code does, or 'spread', see `test`.
        whole_video: whether the last frame is min(n, start + L - 1) instead of start + L - 1. Then a video of fewer
            than L frames is spread over the clip, and its last frame is not held. Source: a description of `decode`
            with `force_all_video` in bomri/SlowFast, slowfast/datasets/decoder.py. The file itself was not compared.
    """

    frames: int
    stride: int
    fps: float | None = None
    test_starts: str = "from_first"
    whole_video: bool = False

    def __post_init__(self):
        check_count("data.frames", self.frames)
        check_count("data.stride", self.stride)
        check_fps(self.fps)
        check_test_starts(self.test_starts)

    @property
    def rule(self) -> str:
        length = f"T x {self.stride}" + ("" if self.fps is None else f" x r / {self.fps:g}")
        rate = "" if self.fps is None else f"r is the average frame rate of the file. {STEADY_RULE} "
        start = "k / K x max(n - L, 0)"
        if self.test_starts == "spread":
            start = "k / (K - 1) x max(n - L, 0), or half of max(n - L, 0) if K is 1"
        end = "min(n, start + L - 1)" if self.whole_video else "start + L - 1"
        return (
            f"{rate}L = {length}, not rounded. Clip k starts at {start}. Its frames are "
            f"floor(linspace(start, {end}, T)), but at most n - 1."
        )

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """Returns ascending indices, (frames,) int64. The start is uniform from 0 to max(n - L, 0)."""
        length = self._length(times, duration)
        return self._clips(len(times), length, rng.uniform(0, max(len(times) - length, 0.0), 1))[0]

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray:
        """Returns (clips, frames) int64 indices.

        'from_first': clip k of K starts at k / K x max(n - L, 0). A single clip is the beginning of the video.

        'spread': clip k starts at k / (K - 1) x max(n - L, 0). A single clip is centred.
        """
        check_count("eval.clips", clips)
        length = self._length(times, duration)
        slack = max(len(times) - length, 0.0)
        return self._clips(len(times), length, clip_starts(self.test_starts, slack, clips))

    def _length(self, times, duration):
        """Returns L, in frames of the file."""
        if self.fps is None or duration <= 0:
            return float(self.frames * self.stride)
        times, duration = steady_times(times, duration)
        return self.frames * self.stride * float(frame_rate(len(times), duration)) / self.fps

    def _clips(self, count, length, starts):
        ends = starts + max(length - 1, 0.0)
        if self.whole_video:
            ends = np.minimum(ends, count)
        indices = np.floor(np.linspace(starts, ends, self.frames, axis=1) + _TOLERANCE)
        return np.clip(indices, 0, count - 1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _Strided(abc.ABC):
    """Clips of every s-th frame of the file. Frames beyond the end of the file are counted from its beginning again."""

    frames: int
    stride: int

    def __post_init__(self):
        check_count("data.frames", self.frames)
        check_count("data.stride", self.stride)

    @property
    def rule(self) -> str:
        return f"s is {self.stride}. {self._starts_rule} Its frames are (start + i s) modulo n."

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """Returns indices, (frames,) int64. They ascend, except where they go on from the beginning of the file."""
        n = len(times)
        return self._clips(n, rng.integers(self._num_train_starts(n), size=1))[0]

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray:
        """Returns (clips, frames) int64 indices. They ascend, except where they start from the beginning again."""
        check_count("eval.clips", clips)
        return self._clips(len(times), self._test_starts(len(times), clips, seed))

    @property
    def _span(self):
        """T s, the frames that a clip is taken to span."""
        return self.frames * self.stride

    def _clips(self, n, starts):
        return (starts.astype(np.int64)[:, None] + np.arange(self.frames) * self.stride) % n

    @property
    @abc.abstractmethod
    def _starts_rule(self) -> str:
        """The sentence of `rule` that says where clip k starts."""

    @abc.abstractmethod
    def _num_train_starts(self, n: int) -> int:
        """Returns the number of starts of training clips, which are 0, 1, ... with equal probability."""

    @abc.abstractmethod
    def _test_starts(self, n: int, clips: int, seed: int) -> np.ndarray:
        """Returns the starts of the test clips, (clips,)."""


class TokenShift(_Strided):
    """Test clip k of K starts at min(floor(k n / K), max(n - T s + 1, 1)), or at 0 if that bound is 1.

    A training clip starts at 0 to n - T s - 1. The ten test clips of a video of 300 frames start at 0, 30 and eight
    times at 45, if T = 8 and s = 32.

    Source: VideoNetworks/TokShift-Transformer, data/dataset.py, `read_clip` and `read_random_clip`. MSCA's released
    code (MSCA.diff in that repository) has the same functions.
    """

    @property
    def _starts_rule(self):
        return "Clip k starts at min(floor(k n / K), b) with b = max(n - T s + 1, 1), or at 0 if b is 1."

    def _num_train_starts(self, n):
        return max(n - self._span, 1)

    def _test_starts(self, n, clips, seed):
        bound = max(n - self._span + 1, 1)
        return np.minimum(np.arange(clips) * n // clips, 0 if bound == 1 else bound)


class RandomStarts(TokenShift):
    """Draws the start of every test clip as that of a training clip of `TokenShift`.

    The seed determines the starts. It depends on the name of the video alone, see `batches.video_seed`, so every
    evaluation takes the same clips.

    Source: MSCA, section 4.1, which samples ten test clips of a video as it samples training clips.
    """

    @property
    def _starts_rule(self):
        return "Clip k starts at a random one of the frames 0 to max(n - T s, 1) - 1, drawn with the name of the video."

    def _test_starts(self, n, clips, seed):
        return np.random.default_rng(seed).integers(self._num_train_starts(n), size=clips)


class MMAction0(_Strided):
    """Test clip k of K starts at floor((k + 1/2) (n - T s + 1) / K), or at 0 if n < T s.

    Source: open-mmlab/mmaction2 0.x, mmaction/datasets/pipelines/loading.py, `SampleFrames`. The files of Video Swin
    were tested with this rule.
    """

    @property
    def _starts_rule(self):
        return "Clip k starts at floor((k + 1/2) (n - T s + 1) / K), or at 0 if n < T s."

    def _num_train_starts(self, n):
        return max(n - self._span + 1, 1)

    def _test_starts(self, n, clips, seed):
        share = max(n - self._span + 1, 0) / clips
        return np.floor(np.arange(clips) * share + share / 2)


class MMAction1(MMAction0):
    """Test clip k of K starts at round(k m / (K - 1)), or floor(m / 2) if K is 1; m = max(n - (T - 1) s - 1, 0).

    Halves are rounded to even numbers. Training clips are those of `MMAction0`.

    Source: open-mmlab/mmaction2 1.x, mmaction/datasets/transforms/loading.py, `SampleFrames`.
    """

    @property
    def _starts_rule(self):
        return (
            "Clip k starts at round(k m / (K - 1)) with m = max(n - (T - 1) s - 1, 0), where halves round to even "
            "numbers, or at floor(m / 2) if K is 1."
        )

    def _test_starts(self, n, clips, seed):
        slack = max(n - (self.frames - 1) * self.stride - 1, 0)
        return np.round(np.arange(clips) * (slack / (clips - 1))) if clips > 1 else np.array([slack // 2])


class DMVR(_Strided):
    """Test clip k of K starts at trunc(k m / (K - 1)) with m = max(n - T s, 0), or at floor(m / 2) if K is 1.

    A training clip starts at 0 to n - (T - 1) s - 1.

    Source: google-deepmind/dmvr, dmvr/processors.py, `sample_linspace_sequence` and `sample_sequence`, which ViViT uses
    (google-research/scenic, scenic/projects/vivit/data/video_tfrecord_dataset.py). Its files of Kinetics have 250
    frames.
    """

    @property
    def _starts_rule(self):
        return "Clip k starts at trunc(k m / (K - 1)) with m = max(n - T s, 0), or at floor(m / 2) if K is 1."

    def _num_train_starts(self, n):
        return max(n - (self.frames - 1) * self.stride, 1)

    def _test_starts(self, n, clips, seed):
        slack = max(n - self._span, 0)
        return np.arange(clips) * slack // (clips - 1) if clips > 1 else np.array([slack // 2])


@dataclasses.dataclass(frozen=True)
class TimeSformerSSv2:
    """Takes one frame of each of T segments of the whole video, from round(i g) to round((i + 1) g), g = (n - 1) / T.

    Halves are rounded to even numbers. In testing, the frame is floor((round(i g) + round((i + 1) g)) / 2) in every
    clip. In training, each frame of the segment, both ends included, has the same probability.

    Source: facebookresearch/TimeSformer, timesformer/datasets/ssv2.py, `Ssv2.__getitem__`.
    """

    frames: int

    def __post_init__(self):
        check_count("data.frames", self.frames)

    @property
    def rule(self) -> str:
        return (
            "Every clip takes the frames floor((round(i g) + round((i + 1) g)) / 2) with g = (n - 1) / T, where halves "
            "are rounded to even numbers."
        )

    def train(self, times, duration, rng: np.random.Generator) -> np.ndarray:
        """Returns ascending indices, (frames,) int64: a random frame of each segment."""
        bounds = self._bounds(len(times))
        return rng.integers(bounds[:-1], bounds[1:], endpoint=True)

    def test(self, times, duration, clips: int, seed: int = 0) -> np.ndarray:
        """Returns (clips, frames) int64 indices, the same for every clip."""
        check_count("eval.clips", clips)
        bounds = self._bounds(len(times))
        return np.tile((bounds[:-1] + bounds[1:]) // 2, (clips, 1))

    def _bounds(self, n):
        return np.round((n - 1) / self.frames * np.arange(self.frames + 1)).astype(np.int64)

"""The samplers by the names that `data.sampling` takes."""

from collections.abc import Callable

from input_pipeline.errors import DataError
from input_pipeline.frame_rules import DMVR, MMAction0, MMAction1, RandomStarts, SlowFast, TimeSformerSSv2, TokenShift
from input_pipeline.sampling import Dense, Sampler, Uniform

# Of the whole video: they ignore data.stride, data.fps and data.test_starts.
SEGMENTS: dict[str, Callable[[int], Sampler]] = {"uniform": Uniform, "timesformer_ssv2": TimeSformerSSv2}
# Of one segment of the video, whose length depends on data.stride and data.fps.
DENSE: dict[str, Callable[[int, int, float | None, str], Sampler]] = {"dense": Dense, "slowfast": SlowFast}
# Of every data.stride-th frame of the file.
STRIDED: dict[str, Callable[[int, int], Sampler]] = {
    "tokenshift": TokenShift,
    "random_starts": RandomStarts,
    "mmaction2_0": MMAction0,
    "mmaction2_1": MMAction1,
    "dmvr": DMVR,
}
SAMPLINGS = (*SEGMENTS, *DENSE, *STRIDED)


def make_sampler(sampling: str, frames: int, stride: int, fps: float | None, test_starts: str) -> Sampler:
    """Returns the sampler that `sampling` names. The arguments are fields of the section `data`, see `Pipeline`.

    Raises:
        DataError: a field is out of range or does not apply to this sampler.
    """
    if sampling in SEGMENTS:
        return SEGMENTS[sampling](frames)
    if sampling in DENSE:
        return DENSE[sampling](frames, stride, fps, test_starts)
    if sampling not in STRIDED:
        raise DataError(f"data.sampling must be {' or '.join(map(repr, SAMPLINGS))}, but is {sampling!r}.")
    for field, value, unset in (("fps", fps, None), ("test_starts", test_starts, "spread")):
        if value != unset:
            raise DataError(
                f"data.{field}={value!r} does not apply to data.sampling={sampling!r}, which counts the frames of the "
                f"file and has starts of its own. Set data.{field}={unset!r}, or another data.sampling."
            )
    return STRIDED[sampling](frames, stride)


def long_sampler(sampling: str, frames: int, fps: float | None, test_starts: str) -> Sampler:
    """Returns the sampler of `eval.frames`, for tests with more frames than a training clip has.

    The sampler is `Uniform`, which takes `frames` frames of the whole video. For `sampling='slowfast'` it is the rule
    of VTN, which takes the first `frames` frames at `fps` frames per second.
    """
    if sampling == "slowfast":
        return SlowFast(frames, 1, fps, test_starts, whole_video=True)
    return Uniform(frames)

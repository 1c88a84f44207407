"""Frame indices follow the published definitions, are symmetric in time, and reach every frame equally."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import DataError
from input_pipeline.samplers import STRIDED, make_sampler
from input_pipeline.sampling import Dense, Uniform, sampling_remark, steady_times


def constant(n, fps=25.0):
    return np.arange(n) / fps, n / fps


SPREAD = st.just("spread")
SAMPLERS = st.one_of(
    st.builds(make_sampler, st.sampled_from(list(STRIDED)), st.integers(1, 40), st.integers(1, 40), st.none(), SPREAD),
    st.builds(
        make_sampler,
        st.sampled_from(["uniform", "timesformer_ssv2", "dense", "slowfast"]),
        st.integers(1, 40),
        st.integers(1, 40),
        st.none() | st.floats(1, 60),
        st.sampled_from(["spread", "from_first"]),
    ),
)
# Frames at least 1 ms apart, at a varying rate.
VIDEOS = st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=60).map(
    lambda steps: (np.concatenate([[0.0], np.cumsum(steps)[:-1]]), float(np.sum(steps)))
)


@given(SAMPLERS, VIDEOS, st.integers(1, 12), st.integers(0, 9))
def test_indices_are_valid_and_ascending(sampler, video, clips, seed):
    times, duration = video
    train = sampler.train(times, duration, np.random.default_rng(seed))
    test = sampler.test(times, duration, clips)
    assert train.shape == (sampler.frames,) and test.shape == (clips, sampler.frames)
    for indices in (train, *test):
        assert indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < len(times)
        assert (np.diff(indices) >= 0).all() or type(sampler) in STRIDED.values()


@pytest.mark.quick
def test_uniform_takes_the_centres_of_the_segments():
    times, duration = constant(40)
    np.testing.assert_array_equal(Uniform(8).test(times, duration, 1), [np.arange(2, 40, 5)])


@pytest.mark.parametrize("clips", [1, 2, 4])
def test_uniform_is_symmetric_in_time(clips):
    times, duration = constant(40)
    indices = Uniform(8).test(times, duration, clips)
    np.testing.assert_array_equal(np.sort(indices.ravel()), np.sort(39 - indices.ravel()))
    assert len(np.unique(indices)) == 8 * clips  # no clip repeats another


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([24, 25, 29.97, 30, 59.94]))
def test_uniform_at_a_constant_rate_is_exact(segments, odd, fps):
    odd = 2 * odd + 1  # frames per segment, so that there is a central one
    times, duration = constant(segments * odd, fps)
    np.testing.assert_array_equal(Uniform(segments).test(times, duration, 1)[0], np.arange(segments) * odd + odd // 2)


@given(st.integers(1, 12), st.integers(1, 100), st.integers(0, 99))
def test_uniform_training_takes_one_frame_of_each_segment(segments, frames, seed):
    times, duration = constant(segments * frames)
    indices = Uniform(segments).train(times, duration, np.random.default_rng(seed))
    np.testing.assert_array_equal(indices // frames, np.arange(segments))


def test_uniform_training_reaches_every_frame_equally():
    times, duration = constant(20)
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([Uniform(3).train(times, duration, rng) for _ in range(8000)]))
    assert len(counts) == 20 and counts.std() / counts.mean() < 0.05


def test_uniform_follows_time_not_indices():
    times, duration = np.array([0, 0.1, 0.2, 0.3, 1.0, 1.5]), 2.0
    np.testing.assert_array_equal(Uniform(4).test(times, duration, 1), [[2, 3, 4, 5]])


@given(
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(0, 300),
    st.integers(2, 10),
    st.sampled_from([24, 25, 29.97, 30, 59.94]),
)
def test_dense_starts_run_from_end_to_end(frames, stride, slack, clips, fps):
    times, duration = constant((frames - 1) * stride + 1 + slack, fps)
    indices = Dense(frames, stride).test(times, duration, clips)
    assert (np.diff(indices) == stride).all()
    assert indices[0, 0] == 0 and indices[-1, -1] == len(times) - 1
    assert np.ptp(np.diff(indices[:, 0])) <= 1
    assert Dense(frames, stride).test(times, duration, 1)[0, 0] == slack // 2


@given(
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(0, 300),
    st.integers(1, 10),
    st.sampled_from([24, 25, 29.97, 30, 59.94]),
)
def test_dense_from_first_divides_the_remaining_time_equally(frames, stride, slack, clips, fps):
    times, duration = constant(frames * stride + slack, fps)
    indices = Dense(frames, stride, test_starts="from_first").test(times, duration, clips)
    np.testing.assert_array_equal(indices[:, 0], slack * np.arange(clips) // clips)
    assert (np.diff(indices) == stride).all()


@pytest.mark.quick
def test_dense_rules_put_a_single_clip_in_different_places():
    """A clip of 8 x 8 frames of a hundred is in the centre, or at the beginning."""
    times, duration = constant(100)
    assert Dense(8, 8).test(times, duration, 1)[0, 0] == (99 - 56) // 2
    assert Dense(8, 8, test_starts="from_first").test(times, duration, 1)[0, 0] == 0
    assert Dense(8, 8, test_starts="from_first").test(times, duration, 3)[:, 0].tolist() == [0, 12, 24]
    held = Dense(8, 8, test_starts="from_first").test(*constant(20), 3)
    np.testing.assert_array_equal(held, [[0, 8, 16, 19, 19, 19, 19, 19]] * 3)


def test_dense_training_start_is_uniform():
    times, duration = constant(4 * 3 + 1 + 9)
    rng = np.random.default_rng(0)
    clips = np.array([Dense(5, 3).train(times, duration, rng) for _ in range(5000)])
    assert (np.diff(clips) == 3).all()
    counts = np.bincount(clips[:, 0])
    assert len(counts) == 10 and counts.std() / counts.mean() < 0.1


def test_dense_spans_the_same_time_at_any_rate():
    for fps in (10, 25, 30, 50):
        times, duration = constant(20 * fps, fps)
        indices = Dense(8, 16, fps=25).test(times, duration, 1)[0]
        np.testing.assert_allclose(np.diff(times[indices]), 16 / 25, atol=1 / fps)
        assert abs(times[indices[-1]] - times[indices[0]] - 7 * 16 / 25) <= 1 / fps
    times, duration = constant(200, 50)
    np.testing.assert_array_equal(np.diff(Dense(8, 4, fps=25).test(times, duration, 1)[0]), 8)


def test_dense_repeats_the_last_frame_of_a_short_video():
    times, duration = constant(10)
    expected = [0, 4, 8, 9, 9]
    np.testing.assert_array_equal(Dense(5, 4).test(times, duration, 3), [expected] * 3)
    np.testing.assert_array_equal(Dense(5, 4).train(times, duration, np.random.default_rng(0)), expected)
    np.testing.assert_array_equal(Dense(3, 4).test(np.zeros(1), 0.0, 1), [[0, 0, 0]])
    np.testing.assert_array_equal(Uniform(3).test(np.zeros(1), 0.0, 1), [[0, 0, 0]])


@pytest.mark.parametrize(
    "field, make",
    [
        ("data.frames", lambda: Uniform(0)),
        ("data.frames", lambda: Uniform(8.0)),
        ("data.frames", lambda: Dense(0, 1)),
        ("data.stride", lambda: Dense(8, 0)),
        ("data.fps", lambda: Dense(8, 1, 0)),
        ("data.fps", lambda: Dense(8, 1, "25")),
        ("data.test_starts", lambda: Dense(8, 1, test_starts="first")),
        ("eval.clips", lambda: Uniform(8).test(*constant(40), 0)),
        ("eval.clips", lambda: Dense(8, 1).test(*constant(40), 0)),
    ],
)
def test_fields_are_checked(field, make):
    with pytest.raises(DataError, match=field.replace(".", r"\.")):
        make()


# Videos of which a few frames fill most of the time


def jumps(count, *gaps, fps=25.0):
    """Returns times and duration of a video at a constant rate, where frame n lasts `seconds` for each (n, seconds)."""
    intervals = np.full(count, 1 / fps)
    for index, seconds in gaps:
        intervals[index] = seconds
    return np.cumsum(intervals) - intervals, float(intervals.sum())


PAUSED = [
    jumps(100, (0, 3600.0)),  # a recording that was paused after its first frame
    jumps(100, (49, 30.0)),
    jumps(100, (99, 5.0)),  # the last frame is held
    jumps(100, (20, 9.0), (50, 10.0), (70, 11.0)),  # none of them fills half, and together they fill nine tenths
    jumps(12, (3, 1.0)),
]


@pytest.mark.quick
@pytest.mark.parametrize("times, duration", PAUSED)
def test_where_a_few_frames_fill_the_time_frames_are_counted(times, duration):
    """All rules take the frames that they take from a video of the same number of frames at a constant rate."""
    n, steady = len(times), constant(len(times))
    remark = sampling_remark(times, duration)
    assert "of the duration" in remark and f" of {n} frames fill" in remark
    for sampling, fps in (("uniform", None), ("dense", None), ("dense", 12.5), ("slowfast", 12.5)):
        sampler = make_sampler(sampling, 4, 2, fps, "spread")
        np.testing.assert_array_equal(sampler.test(times, duration, 3), sampler.test(*steady, 3))
        for seed in range(5):
            rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
            np.testing.assert_array_equal(sampler.train(times, duration, rng), sampler.train(*steady, other))
    assert len(np.unique(Uniform(8).test(times, duration, 1))) == 8


@pytest.mark.quick
@pytest.mark.parametrize(
    "times, duration",
    [
        constant(1),
        constant(2, 29.97),
        constant(3),
        (np.array([0.0, 0.033]), 0.067),  # two frames in whole milliseconds, the last of which is the longer one
        (np.array([0, 0.1, 0.2, 0.3, 1.0, 1.5]), 2.0),
        jumps(100, (50, 3.9)),  # just below a half
        jumps(8, *((n, 5.0) for n in range(8))),  # a show of slides
        (np.cumsum([1 / 60] * 60 + [1 / 10] * 60) - 1 / 60, 7.0),
    ],
)
def test_other_variable_rates_are_sampled_by_time(times, duration):
    assert steady_times(times, duration)[0] is times and sampling_remark(times, duration) == ""

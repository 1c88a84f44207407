"""Rules of published code: indices worked out by hand for videos of 300 and 250 frames at 25 and 30 frames per second.

The hand's arithmetic is in the comments. Every rule has its entry in BY_HAND, which a test compares with the names that
`data.sampling` takes.
"""

import numpy as np
import pytest

from input_pipeline import DataError, Pipeline
from input_pipeline.annotations import Record
from input_pipeline.batches import video_seed
from input_pipeline.frame_rules import DMVR, MMAction0, MMAction1, RandomStarts, SlowFast, TimeSformerSSv2, TokenShift
from input_pipeline.samplers import SAMPLINGS, long_sampler, make_sampler
from input_pipeline.sampling import Uniform


def video(n, fps):
    return np.arange(n) / fps, n / fps


def steps(start, stride, count):
    return list(range(start, start + stride * count, stride))


BOTH_RATES = (25, 30)
FIRST_OF_256 = [0, 36, 72, 109, 145, 182, 218]  # 255 i / 7: 0, 36.4, 72.9, 109.3, 145.7, 182.1, 218.6
# At 25 frames per second L = 8 x 32 x 25 / 30 = 213 1/3. 30 1/3 i: 0, 30.3, 60.7, 91, 121.3, 151.7, 182, 212.3.
FIRST_OF_213 = [0, 30, 60, 91, 121, 151, 182, 212]

# sampling -> [((frames, stride, fps, test_starts), clips, n, rates of the file, {clip: its frames})]
BY_HAND = {
    "uniform": [
        # Centres of segments of 37.5 frames: 18.75, 56.25, ..., and of 31.25 frames: 15.625, 46.875, ...
        ((8, 1, None, "spread"), 1, 300, BOTH_RATES, {0: [18, 56, 93, 131, 168, 206, 243, 281]}),
        ((8, 1, None, "spread"), 1, 250, BOTH_RATES, {0: [15, 46, 78, 109, 140, 171, 203, 234]}),
    ],
    "dense": [
        ((8, 32, None, "spread"), 1, 300, BOTH_RATES, {0: steps(37, 32, 8)}),  # (299 - 224) / 2 = 37.5
        ((8, 32, None, "spread"), 1, 250, BOTH_RATES, {0: steps(12, 32, 8)}),  # (249 - 224) / 2 = 12.5
        ((8, 32, None, "from_first"), 1, 300, BOTH_RATES, {0: steps(0, 32, 8)}),
        ((8, 32, 30.0, "from_first"), 1, 250, (30,), {0: steps(0, 32, 8)}),
        # 26 2/3 frames of the file apart: 0, 26.7, 53.3, 80, 106.7, 133.3, 160, 186.7.
        ((8, 32, 30.0, "from_first"), 1, 300, (25,), {0: [0, 26, 53, 80, 106, 133, 160, 186]}),
        ((8, 32, 30.0, "from_first"), 1, 250, (25,), {0: [0, 26, 53, 80, 106, 133, 160, 186]}),
    ],
    "slowfast": [
        ((8, 32, 30.0, "from_first"), 1, 300, (30,), {0: [*FIRST_OF_256, 255]}),
        ((8, 32, 30.0, "from_first"), 1, 250, (30,), {0: [*FIRST_OF_256, 249]}),
        ((8, 32, 30.0, "from_first"), 1, 300, (25,), {0: FIRST_OF_213}),
        ((8, 32, 30.0, "from_first"), 1, 250, (25,), {0: FIRST_OF_213}),
        ((8, 32, None, "from_first"), 1, 300, BOTH_RATES, {0: [*FIRST_OF_256, 255]}),
        # The last of three starts at 2/3 of 44 = 29.33: 29.3, 65.8, 102.2, 138.6, 175.05, 211.5, 247.9, 284.3.
        ((8, 32, 30.0, "from_first"), 3, 300, (30,), {2: [29, 65, 102, 138, 175, 211, 247, 284]}),
        # At 2/3 of 86.67 = 57.78: 57.8, 88.1, 118.4, 148.8, 179.1, 209.4, 239.8, 270.1.
        ((8, 32, 30.0, "from_first"), 3, 300, (25,), {2: [57, 88, 118, 148, 179, 209, 239, 270]}),
        # At 2/3 of 36.67 = 24.44: 24.4, 54.8, 85.1, 115.4, 145.8, 176.1, 206.4, 236.8.
        ((8, 32, 30.0, "from_first"), 3, 250, (25,), {2: [24, 54, 85, 115, 145, 176, 206, 236]}),
        # At 3/5 of 36.67 = 22, where rounding must not make 21 of 22: 22, 52.3, 82.7, 113, 143.3, 173.7, 204, 234.3.
        ((8, 32, 30.0, "from_first"), 5, 250, (25,), {3: [22, 52, 82, 113, 143, 173, 204, 234]}),
        # 'spread' ends at 44 and centres a single clip at 22: 22, 58.4, 94.9, 131.3, 167.7, 204.1, 240.6, 277.
        ((8, 32, 30.0, "spread"), 2, 300, (30,), {1: [44, 80, 116, 153, 189, 226, 262, 299]}),
        ((8, 32, 30.0, "spread"), 1, 300, (30,), {0: [22, 58, 94, 131, 167, 204, 240, 277]}),
    ],
    "tokenshift": [
        ((8, 32, None, "spread"), 10, 300, BOTH_RATES, dict(zip(range(10), [0, 30] + [45] * 8, strict=True))),
        ((8, 32, None, "spread"), 10, 250, BOTH_RATES, dict.fromkeys(range(10), 0)),  # 250 < 256
        ((8, 32, None, "spread"), 1, 100, (25,), {0: [0, 32, 64, 96, 28, 60, 92, 24]}),
    ],
    "random_starts": [((8, 32, None, "spread"), 10, 250, BOTH_RATES, dict.fromkeys(range(10), 0))],
    "mmaction2_0": [
        # Shares of 237 / 4 = 59.25, centres 29.6, 88.9, 148.1, 207.4, and of 187 / 4 = 46.75: 23.4, 70.1, 116.9, 163.6.
        ((32, 2, None, "spread"), 4, 300, BOTH_RATES, {0: 29, 1: 88, 2: 148, 3: 207}),
        ((32, 2, None, "spread"), 4, 250, BOTH_RATES, {0: 23, 1: 70, 2: 116, 3: 163}),
        ((32, 2, None, "spread"), 1, 300, BOTH_RATES, {0: 118}),
        ((4, 16, None, "spread"), 2, 40, (25,), dict.fromkeys(range(2), [0, 16, 32, 8])),  # 40 < 64
    ],
    "mmaction2_1": [
        # 237 / 3 = 79 and 187 / 3 = 62.33; halves 118.5 and 93.5, to even.
        ((32, 2, None, "spread"), 4, 300, BOTH_RATES, {0: 0, 1: 79, 2: 158, 3: 237}),
        ((32, 2, None, "spread"), 4, 250, BOTH_RATES, {0: 0, 1: 62, 2: 125, 3: 187}),
        ((32, 2, None, "spread"), 3, 300, BOTH_RATES, {1: 118}),
        ((32, 2, None, "spread"), 3, 250, BOTH_RATES, {1: 94}),
        ((32, 2, None, "spread"), 1, 250, BOTH_RATES, {0: 93}),
        ((4, 16, None, "spread"), 2, 40, (25,), dict.fromkeys(range(2), [0, 16, 32, 8])),
    ],
    "dmvr": [
        # 236 / 3 = 78.67 and 186 / 3 = 62.
        ((32, 2, None, "spread"), 4, 300, BOTH_RATES, {0: 0, 1: 78, 2: 157, 3: 236}),
        ((32, 2, None, "spread"), 4, 250, BOTH_RATES, {0: 0, 1: 62, 2: 124, 3: 186}),
        ((32, 2, None, "spread"), 1, 300, BOTH_RATES, {0: 118}),
        ((4, 16, None, "spread"), 2, 40, (25,), dict.fromkeys(range(2), [0, 16, 32, 8])),
    ],
    "timesformer_ssv2": [
        # 299 / 8 = 37.375: 0 37 75 112 150 187 224 262 299, where 149.5 is rounded to 150.
        ((8, 1, None, "spread"), 2, 300, BOTH_RATES, dict.fromkeys(range(2), [18, 56, 93, 131, 168, 205, 243, 280])),
        # 249 / 8 = 31.125: 0 31 62 93 124 156 187 218 249, where 124.5 is rounded to 124.
        ((8, 1, None, "spread"), 2, 250, BOTH_RATES, dict.fromkeys(range(2), [15, 46, 77, 108, 140, 171, 202, 233])),
    ],
}


@pytest.mark.quick
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_indices_by_hand(sampling):
    """A single number stands for a clip of `frames` frames of the file, `stride` apart, that starts there."""
    for (frames, stride, fps, test_starts), clips, n, rates, expected in BY_HAND[sampling]:
        for rate in rates:
            indices = make_sampler(sampling, frames, stride, fps, test_starts).test(*video(n, rate), clips)
            assert indices.shape == (clips, frames) and indices.dtype == np.int64
            for clip, by_hand in expected.items():
                by_hand = by_hand if isinstance(by_hand, list) else steps(by_hand, stride, frames)
                assert indices[clip].tolist() == by_hand, (n, rate, clips, clip)


@pytest.mark.quick
def test_the_whole_video_in_one_view():
    """VTN's test takes the first 10 seconds at 25 frames per second. A shorter video is spread and not held."""
    sampler = long_sampler("slowfast", 250, 25.0, "from_first")

    def of(n, rate):
        return sampler.test(*video(n, rate), 1)[0].tolist()

    assert of(300, 25) == of(250, 25) == list(range(250))
    at_30 = of(300, 30)  # L = 300: 299 i / 249, with 124 x 299 / 249 = 148.9 and 125 x 299 / 249 = 150.1
    assert at_30 == [299 * i // 249 for i in range(250)] and at_30[124:126] == [148, 150] and at_30[-1] == 299
    assert of(250, 30) == list(range(250))  # the last is min(250, 299) = 250: 250 i / 249, at most 249
    assert of(100, 25) == [min(100 * i // 249, 99) for i in range(250)]
    held = SlowFast(250, 1, 25.0).test(*video(100, 25), 1)[0].tolist()
    assert held == [*range(100), *[99] * 150]
    assert long_sampler("dense", 250, 25.0, "from_first") == Uniform(250)


@pytest.mark.quick
def test_a_clip_of_slowfast_spans_its_time_at_any_rate_of_the_file():
    """The clock of some containers ticks once in a millisecond; at a varying rate the average counts."""
    coarse = np.round(np.arange(300) / 30, 3)
    assert SlowFast(8, 32, 30.0).test(coarse, 10.0004, 1)[0].tolist() == [*FIRST_OF_256, 255]
    # L = 256 x 1000 / 1001 = 255.74 is not rounded: 254.74 i / 7.
    ntsc = SlowFast(8, 32, 30.0).test(*video(300, 30000 / 1001), 1)[0].tolist()
    assert ntsc == [0, 36, 72, 109, 145, 181, 218, 254]
    varying = np.concatenate([np.arange(100) / 50, 2 + np.arange(200) / 25])  # 300 frames in 10 s
    assert SlowFast(8, 32, 30.0).test(varying, 10.0, 1)[0].tolist() == [*FIRST_OF_256, 255]
    assert SlowFast(8, 32, 30.0).test(np.zeros(1), 0.0, 2).tolist() == [[0] * 8] * 2


@pytest.mark.quick
@pytest.mark.parametrize(
    "sampler, starts",
    [
        (SlowFast(8, 2), {0, 1, 2}),  # 19 - 16 = 3, and a start of exactly 3 has no probability
        (TokenShift(8, 2), {0, 1, 2}),
        (RandomStarts(8, 2), {0, 1, 2}),
        (MMAction0(8, 2), {0, 1, 2, 3}),
        (MMAction1(8, 2), {0, 1, 2, 3}),
        (DMVR(8, 2), {0, 1, 2, 3, 4}),  # 19 - 14 = 5
    ],
)
def test_training_clips_start_where_the_code_starts_them(sampler, starts):
    rng = np.random.default_rng(0)
    clips = [sampler.train(*video(19, 25), rng) for _ in range(200)]
    assert {int(clip[0]) for clip in clips} == starts
    apart = {tuple(np.diff(clip)) for clip in clips}
    assert apart == {(2,) * 7} or isinstance(sampler, SlowFast)
    # A video shorter than a clip starts at 0; the strided rules go on from its beginning.
    short = {tuple(sampler.train(*video(15, 25), rng).tolist()) for _ in range(50)}
    if isinstance(sampler, SlowFast):
        assert short == {(0, 2, 4, 6, 8, 10, 12, 14)}  # 15 i / 7 from 0: 0, 2.1, 4.3, ..., 12.9, 15 held at 14
    else:
        assert short == {(0, 2, 4, 6, 8, 10, 12, 14)}


@pytest.mark.quick
def test_segments_of_ssv2_include_both_ends_in_training():
    rng = np.random.default_rng(0)
    drawn = np.array([TimeSformerSSv2(2).train(*video(5, 12), rng) for _ in range(200)])
    assert set(drawn[:, 0]) == {0, 1, 2} and set(drawn[:, 1]) == {2, 3, 4}


@pytest.mark.quick
def test_random_starts_depend_on_the_name_of_the_video_alone():
    sampler = RandomStarts(8, 32)

    def starts(seed):
        return sampler.test(*video(300, 25), 10, seed)[:, 0].tolist()

    assert starts(1) == starts(1) != starts(2)
    drawn = np.concatenate([starts(seed) for seed in range(100)])
    assert set(drawn) == set(range(44))  # 300 - 256
    assert (np.diff(sampler.test(*video(300, 25), 10, 3)) == 32).all()
    here, there = Record(0, "/a/b/clip 1.mp4", 0, 1), Record(7, "/c/shard-0", 0, 1, position=3, name="b/clip 1.webm")
    assert video_seed(here) == video_seed(there) != video_seed(Record(0, "/a/b/clip 2.mp4", 0, 1))
    rows = [Record(0, "/c/shard-0", 0, 1, position=position) for position in (0, 1)]
    assert video_seed(rows[0]) != video_seed(rows[1])


@pytest.mark.quick
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_rule_says_which_frames_are_taken(sampling):
    rule = make_sampler(sampling, 8, 5, None, "spread").rule
    assert rule.endswith(".") and ("5" in rule or sampling in ("uniform", "timesformer_ssv2"))


@pytest.mark.quick
@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(sampling="tokenshift", fps=25.0), "data.fps=25.0 does not apply to data.sampling='tokenshift'"),
        (dict(sampling="dmvr", test_starts="from_first"), "data.test_starts='from_first' does not apply"),
        (dict(sampling="slow"), "data.sampling must be 'uniform' or .*'dmvr', but is 'slow'"),
        (dict(sampling="slowfast", fps=0.0), "data.fps must be frames per second above 0"),
        (dict(sampling="slowfast", test_starts="first"), "data.test_starts must be 'spread' or 'from_first'"),
        (dict(sampling="mmaction2_0", stride=0), "data.stride must be a whole number"),
        (dict(sampling="timesformer_ssv2", frames=0), "data.frames must be a whole number"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(fields, words):
    with pytest.raises(DataError, match=words):
        Pipeline(**dict(num_classes=3, frames=8, size=24, short_side=(24, 24)) | fields)


@pytest.mark.quick
def test_a_number_of_clips_below_one_is_refused():
    for sampling in SAMPLINGS:
        with pytest.raises(DataError, match="eval.clips"):
            make_sampler(sampling, 8, 1, None, "spread").test(*video(40, 25), 0)

"""Augmentation treats all frames of a clip alike, and crops are where they are said to be."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import DataError, augment
from input_pipeline.augment import TrainAugment

COLOUR = dict(brightness=1.0, saturation=1.0, gamma=1.0, hue=1.0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height, width):
    """(1, y, x, 3): red is the row, green the column, for reading off where a crop lies."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([y, x, 0 * x], -1)[None]


@given(st.integers(4, 80), st.integers(4, 80), st.integers(1, 5), st.integers(8, 24), st.integers(0, 99))
def test_every_frame_gets_the_same_draw(height, width, t, size, seed):
    frame = noise(height, width, 3)
    apply = TrainAugment(size=size, short_side=(size, size + 9), **COLOUR)
    clip, label = apply(np.stack([frame] * t), 3, np.random.default_rng(seed))
    assert clip.shape == (t, size, size, 3) and clip.dtype == np.uint8 and label == 3
    assert clip.flags.c_contiguous
    assert (clip == clip[0]).all()


def test_draws_depend_on_the_generator_alone():
    apply = TrainAugment(size=16, short_side=(16, 32), **COLOUR)
    frames = noise(4, 40, 60, 3)
    clips = [apply(frames, 0, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert (clips[0] != clips[2]).any()


def test_flip_swaps_labels_and_mirrors():
    frames = noise(4, 20, 20, 3)
    plain, flipped = (TrainAugment(size=20, short_side=(20, 20), flip=flip, flip_swaps={1: 2, 2: 1})
                      for flip in (0, 1))
    for label, swapped in ((0, 0), (1, 2), (2, 1)):
        clip, same = plain(frames, label, np.random.default_rng(0))
        mirror, other = flipped(frames, label, np.random.default_rng(0))
        assert (same, other) == (label, swapped)
        np.testing.assert_array_equal(clip, frames)
        np.testing.assert_array_equal(mirror, frames[:, :, ::-1])


def test_flip_probability():
    apply = TrainAugment(size=2, short_side=(2, 2), flip=0.25, flip_swaps={0: 1})
    rng = np.random.default_rng(0)
    assert 0.22 < np.mean([apply(noise(1, 2, 2, 3), 0, rng)[1] for _ in range(4000)]) < 0.28


def test_crops_reach_every_place_and_no_further():
    apply = TrainAugment(size=8, short_side=(16, 16), flip=0.0)
    rng = np.random.default_rng(0)
    corners = {tuple(apply(ramp(16, 20), 0, rng)[0][0, 0, 0, :2]) for _ in range(3000)}
    assert corners == {(y, x) for y in range(9) for x in range(13)}


def test_short_side_jitter_scales_the_window():
    rng = np.random.default_rng(0)
    apply = TrainAugment(size=32, short_side=(32, 64), flip=0.0)
    clips = [apply(ramp(128, 200), 0, rng)[0][0] for _ in range(500)]
    spans = np.array([np.ptp(clip[:, 0, 0].astype(int)) for clip in clips])
    assert spans.min() < 66 and spans.max() > 120  # half of the source, to all of it
    across = [np.ptp(clip[0, :, 1].astype(int)) for clip in clips]
    np.testing.assert_allclose(spans, across, atol=2)  # no stretch


@pytest.mark.parametrize("height, width", [(20, 33), (33, 20)])
def test_test_crops_lie_along_the_longer_side(height, width):
    frames = ramp(height, width)
    three = augment.test_crops(frames, 20, 3)
    along = 1 if width > height else 0
    assert three.shape == (3, 1, 20, 20, 3)
    assert three[:, 0, 0, 0, along].tolist() == [0, 6, 13]
    assert (three[:, 0, 0, 0, 1 - along] == 0).all()
    np.testing.assert_array_equal(augment.test_crops(frames, 20, 1)[0], three[1])


def test_test_crop_within_a_larger_short_side():
    crop = augment.test_crops(ramp(32, 40), 16, 1, short_side=32)  # scale 1: pixels are copied
    np.testing.assert_array_equal(crop[0], ramp(32, 40)[:, 8:24, 12:28])
    np.testing.assert_array_equal(augment.test_crops(ramp(32, 40), 16, 3, short_side=32)[2],
                                  ramp(32, 40)[:, 8:24, 24:40])


def test_window_and_resize_equal_resizing_the_whole_frame():
    frame = cv2.GaussianBlur(noise(120, 160, 3), (0, 0), 4)
    whole = cv2.resize(frame, (80, 60), interpolation=cv2.INTER_LINEAR)
    crop = augment.test_crops(frame[None], 40, 1, short_side=60)[0, 0]
    np.testing.assert_allclose(crop.astype(int), whole[10:50, 20:60], atol=1)


@pytest.mark.parametrize("crops", [0, 2, 5, "3"])
def test_other_numbers_of_crops(crops):
    with pytest.raises(DataError, match=r"eval\.crops"):
        augment.test_crops(ramp(20, 30), 20, crops)


def test_colour_is_left_alone_by_default():
    frames = noise(2, 16, 16, 3)
    clip, _ = TrainAugment(size=16, short_side=(16, 16), flip=0.0)(frames, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(clip, frames)


@pytest.mark.parametrize("change", COLOUR)
def test_colour_changes(change):
    grey = np.repeat(noise(1, 16, 16, 1), 3, -1)
    colours = noise(1, 16, 16, 3)
    apply = TrainAugment(size=16, short_side=(16, 16), flip=0.0, **{change: 1.0})
    for seed in range(20):
        changed, _ = apply(colours, 0, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and (changed != colours).any()
        assert abs(changed.mean() - colours.mean()) < 50
        grey_changed, _ = apply(grey, 0, np.random.default_rng(seed))
        assert np.ptp(grey_changed.astype(int), -1).max() <= 1  # grey stays grey under every change
        if change in ("saturation", "hue"):
            np.testing.assert_allclose(grey_changed.astype(int), grey, atol=1)
        if change == "gamma":
            ends = np.array([0, 255], np.uint8)[None, None, :, None].repeat(3, -1).repeat(2, 1)
            ends = TrainAugment(2, (2, 2), 0.0, gamma=1.0)(ends, 0, np.random.default_rng(seed))[0]
            assert ends[0, 0, :, 0].tolist() == [0, 255]


def test_each_colour_change_has_its_own_probability():
    apply = TrainAugment(size=4, short_side=(4, 4), flip=0.0, brightness=0.1)
    rng = np.random.default_rng(0)
    frames = np.full((1, 4, 4, 3), 100, np.uint8)
    assert 0.08 < np.mean([(apply(frames, 0, rng)[0] != frames).any() for _ in range(3000)]) < 0.12

"""Augmentation treats all frames of a clip alike, and crops are where their parameters put them."""

import dataclasses

import cv2
import numpy as np
import pytest
from clips import pipeline, take
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import DataError, augment
from input_pipeline.augment import TrainAugment

COLOUR = dict(brightness=1.0, saturation=1.0, gamma=1.0, hue=1.0)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height, width):
    """Returns (1, y, x, 3): red is the row and green the column, so that a crop shows its position."""
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


@pytest.mark.quick
def test_draws_depend_on_the_generator_alone():
    apply = TrainAugment(size=16, short_side=(16, 32), **COLOUR)
    frames = noise(4, 40, 60, 3)
    clips = [apply(frames, 0, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert (clips[0] != clips[2]).any()


@pytest.mark.quick
def test_flip_swaps_labels_and_mirrors():
    frames = noise(4, 20, 20, 3)
    plain, flipped = (TrainAugment(size=20, short_side=(20, 20), flip=flip, flip_swaps={1: 2, 2: 1}) for flip in (0, 1))
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


def test_crops_reach_every_position_and_stay_within_the_frame():
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
    np.testing.assert_array_equal(
        augment.test_crops(ramp(32, 40), 16, 3, short_side=32)[2], ramp(32, 40)[:, 8:24, 24:40]
    )


def test_window_and_resize_equal_resizing_the_whole_frame():
    frame = cv2.GaussianBlur(noise(120, 160, 3), (0, 0), 4)
    whole = cv2.resize(frame, (80, 60), interpolation=cv2.INTER_LINEAR)
    crop = augment.test_crops(frame[None], 40, 1, short_side=60)[0, 0]
    np.testing.assert_allclose(crop.astype(int), whole[10:50, 20:60], atol=1)
    frame = noise(120, 160, 3)  # bicubic crops read the pixels beyond the window, too
    whole = np.asarray(Image.fromarray(frame).resize((80, 60), Image.Resampling.BICUBIC))
    crop = augment.test_crops(frame[None], 40, 1, short_side=60, resize="bicubic")[0, 0]
    np.testing.assert_array_equal(crop, whole[10:50, 20:60])


@pytest.mark.quick
def test_bicubic_weights():
    """The weights of Keys (1981) with a = -1/2, whose cubic is twice as wide if a side is halved."""
    for apply in (
        lambda frames: augment.test_crops(frames, 8, 1, resize="bicubic")[0],
        lambda frames: TrainAugment(size=8, short_side=(8, 8), flip=0.0, resize="bicubic")(
            frames, 0, np.random.default_rng(0)
        )[0],
    ):
        # The column at the distance 1/4, 3/4, 5/4 or 7/4 output pixels from the centre of output column 3.
        for column, weight in ((6, 0.8671875), (5, 0.2265625), (4, -0.0703125), (3, -0.0234375)):
            frames = np.full((1, 16, 16, 3), 50, np.uint8)
            frames[0, :, column] = 250
            np.testing.assert_array_equal(apply(frames)[0, :, 3], round(50 + 200 * weight / 2))


def test_resize_is_that_of_the_config(clip_folder):
    for train in (True, False):
        batches = {}
        for resize in ("bilinear", "bicubic"):
            data = pipeline(clip_folder, resize=resize, test_short_side=28)
            load = (
                data.train_batches(batch_size=2, seed=0) if train else data.val_batches(batch_size=2, clips=1, crops=1)
            )
            (batches[resize],) = take(load, 1)
        difference = batches["bilinear"]["video"].astype(int) - batches["bicubic"]["video"]
        assert 1 < np.abs(difference).max() and np.abs(difference.mean()) < 1


@pytest.mark.parametrize("crops", [0, 2, 5, "3"])
def test_other_numbers_of_crops_are_refused(crops):
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


# Resized crops


def crop_of(size, **options):
    """Returns an augmentation that only crops, without a flip."""
    return TrainAugment(size=size, short_side=(size, size), flip=0.0, crop="resized", **options)


def test_resized_crops_reach_every_position_and_stay_within_the_frame():
    apply = crop_of(8, area=(0.2, 0.2), aspect=(1.0, 1.0))  # 8 x 8 of 16 x 20: pixels are copied
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(3000):
        clip = apply(ramp(16, 20), 0, rng)[0][0].astype(int)
        assert (clip[..., :2] == clip[0, 0, :2] + np.moveaxis(np.mgrid[:8, :8], 0, -1)).all()
        corners.add(tuple(clip[0, 0, :2]))
    assert corners == {(y, x) for y in range(9) for x in range(13)}


def test_resized_crops_cover_the_ranges_of_area_and_aspect():
    rng = np.random.default_rng(0)
    clips = [crop_of(100)(ramp(200, 200), 0, rng)[0][0].astype(float) for _ in range(600)]
    # Rows and columns of the source from the first pixel's centre to the last one's, and from edge to edge.
    spans = [(clip[-1, 50, 0] - clip[0, 50, 0], clip[50, -1, 1] - clip[50, 0, 1]) for clip in clips]
    sides = np.array(spans) * 100 / 99
    area, aspect = sides.prod(1) / 200**2, sides[:, 1] / sides[:, 0]
    assert 0.07 < area.min() < 0.1 and 0.9 < area.max() <= 1.01
    assert 0.72 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.37
    assert abs(np.log(aspect).mean()) < 0.03, "as often broad as high"
    small = area[area < 0.5]  # larger ones do not fit at every aspect
    assert abs(small.mean() - 0.29) < 0.02, "uniform in the area"


@pytest.mark.parametrize("height, width", [(20, 200), (200, 20)])
def test_if_no_rectangle_fits_the_crop_is_the_largest_centred_one(height, width):
    clip = crop_of(27, area=(0.9, 1.0))(ramp(height, width), 0, np.random.default_rng(0))[0][0]
    along, across = (clip[0, :, 1], clip[:, 0, 0]) if width > height else (clip[:, 0, 0], clip[0, :, 1])
    np.testing.assert_array_equal(along, np.arange(86, 113))  # 20 * 1.3333 pixels, not scaled
    assert across[0] == 0 and across[-1] == 19


def test_a_whole_frame_is_a_resized_crop():
    frame = noise(1, 30, 40, 3)
    clip, _ = crop_of(20, area=(1.0, 1.0), aspect=(4 / 3, 4 / 3))(frame, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(clip[0], cv2.resize(frame[0], (20, 20), interpolation=cv2.INTER_LINEAR))


# RandAugment, erasing, and all together


@pytest.mark.parametrize("crop", ["jitter", "resized"])
@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 99))
def test_every_frame_gets_the_same_draw_of_everything(crop, height, width, seed):
    frame = noise(height, width, 3)
    before = frame.copy()
    apply = TrainAugment(size=16, short_side=(16, 20), crop=crop, randaugment=4, erasing=1.0)
    clip, _ = apply(np.stack([frame] * 3), 0, np.random.default_rng(seed))
    assert clip.shape == (3, 16, 16, 3) and clip.dtype == np.uint8 and clip.flags.c_contiguous
    assert (clip == clip[0]).all()
    np.testing.assert_array_equal(frame, before)


def test_switching_a_change_on_leaves_the_draws_of_the_others():
    """The same clips are flipped, and the same boxes erased, whichever other changes are on."""
    frames = np.full((1, 24, 32, 3), 7, np.uint8)
    flips, boxes = [], []
    for options in (
        {},
        COLOUR,
        dict(crop="resized"),
        dict(randaugment=3),
        dict(crop="resized", randaugment=2),
        dict(colour_ranges="tokenshift", **COLOUR),
        dict(colour_jitter=1.0),
        dict(stretch=(1.0, 1.5)),
    ):
        apply = TrainAugment(size=16, short_side=(16, 24), flip_swaps={0: 1}, **options)
        flips.append([apply(frames, 0, np.random.default_rng(seed))[1] for seed in range(60)])
        both = [dataclasses.replace(apply, erasing=erasing) for erasing in (0.0, 0.5)]
        plain, erased = (
            np.stack([apply(frames, 0, np.random.default_rng(seed))[0] for seed in range(60)]) for apply in both
        )
        boxes.append((plain != erased).any(-1))
    assert all(other == flips[0] for other in flips) and 0 < sum(flips[0]) < 60
    assert 15 <= boxes[0].any((1, 2, 3)).sum() <= 45
    for other in boxes[1:]:
        assert (other != boxes[0]).mean() < 1e-3  # noise may have the colour that it covers


def test_randaugment_follows_the_flip_and_its_arguments():
    frames = noise(2, 16, 16, 3)
    apply = TrainAugment(size=16, short_side=(16, 16), flip=1.0, randaugment=2, magnitude=9.0, magnitude_std=0.0)
    calls = []

    class Recorder:
        def __init__(self, *arguments):
            self.arguments = arguments

        def sample(self, rng):
            return ((self.invert, 0.5),)

        def invert(self, clip, severity):
            calls.append((self.arguments, severity, clip))
            return 255 - clip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "RandAugment", Recorder)
        clip, _ = apply(frames, 0, np.random.default_rng(0))
    assert calls[0][:2] == ((2, 9.0, 0.0), 0.5)
    np.testing.assert_array_equal(calls[0][2], frames[:, :, ::-1])
    np.testing.assert_array_equal(clip, 255 - frames[:, :, ::-1])


def test_erasing_fills_one_box_with_noise():
    frames = np.zeros((3, 40, 40, 3), np.uint8)
    apply = TrainAugment(size=40, short_side=(40, 40), erasing=0.25)
    rng = np.random.default_rng(0)
    clips = [apply(frames, 0, rng)[0] for _ in range(3000)]
    erased = [clip for clip in clips if clip.any()]
    assert abs(len(erased) - 750) < 4 * (3000 * 0.25 * 0.75) ** 0.5
    seen, areas, aspects, levels = np.zeros((40, 40), bool), [], [], np.zeros(256, int)
    for clip in erased:
        assert (clip == clip[0]).all()
        y, x = (np.flatnonzero(clip[0].any((axis, 2))) for axis in (1, 0))
        box = clip[0, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        assert box.any(-1).mean() > 0.99, "no holes"
        seen[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = True
        areas.append(box.shape[0] * box.shape[1] / 1600)
        aspects.append(box.shape[1] / box.shape[0])
        levels += np.bincount(box.ravel(), minlength=256)
    assert seen.all()
    assert 0.014 < min(areas) < 0.04 and 0.3 < max(areas) < 0.36
    assert 0.23 < min(aspects) < 0.4 and 2.5 < max(aspects) < 4.4
    assert levels.min() > 0.8 * levels.mean() and levels.max() < 1.2 * levels.mean()


@pytest.mark.parametrize(
    "field, options",
    [
        ("crop", dict(crop="random")),
        ("area", dict(area=(0.0, 1.0))),
        ("area", dict(area=(0.5, 1.1))),
        ("area", dict(area=(0.5, 0.4))),
        ("area", dict(area=0.5)),
        ("aspect", dict(aspect=(0.75,))),
        ("aspect", dict(aspect=(-1.0, 1.0))),
        ("aspect", dict(aspect=(1.0, float("inf")))),
        ("randaugment", dict(randaugment=-1)),
        ("randaugment", dict(randaugment=2.0)),
        ("magnitude", dict(magnitude=11.0)),
        ("magnitude_std", dict(magnitude_std=-0.5)),
        ("magnitude", dict(magnitude=float("nan"))),
        ("erasing", dict(erasing=1.5)),
        ("erasing", dict(erasing="half")),
        ("hue", dict(randaugment=4, hue=0.1)),
        ("brightness", dict(randaugment=1, brightness=0.1)),
        ("grey", dict(randaugment=1, grey=0.1)),
        ("gamma", dict(colour_jitter=0.8, gamma=0.1)),
        ("colour_jitter", dict(colour_jitter=1.1)),
        ("colour_ranges", dict(colour_ranges="wide")),
        ("resize", dict(resize="nearest")),
        ("stretch", dict(stretch=(0.9, 1.3))),
        ("stretch", dict(stretch=(1.0, 1.3), crop="resized")),
        ("stretch", dict(stretch=(1.3, 1.0))),
    ],
)
def test_fields_are_checked(field, options):
    with pytest.raises(DataError, match=rf"^data\.{field} must be .*, but is .*\.$"):
        TrainAugment(size=16, short_side=(16, 16), **options)

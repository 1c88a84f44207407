"""Mixed clips: what is taken from the partner, in which share, and that devices do not change it."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from tiny import clips, quick_jit

from vidformers import ConfigError
from vidformers.parallel.batch import batch_sharding
from vidformers.parallel.mesh import make_mesh
from vidformers.training.mixing import Mixing

ROWS, SIDE = 16, 32
MIXUP, CUTMIX = Mixing(mixup=0.8), Mixing(cutmix=1.0)
BOTH = Mixing(mixup=0.8, cutmix=1.0)


@cache
def compiled(mixing):
    return quick_jit(mixing)


def marked(rows):
    """Clips that are black, white where their partner is black; the targets tell the rows apart."""
    video = np.zeros((rows, 2, SIDE, 24, 3), np.uint8)
    video[rows // 2 :] = 255
    return video, np.eye(rows, dtype=np.float32)


def shares(targets):
    """What the partner contributes to each row of targets that were one-hot."""
    rows = len(targets)
    return np.asarray(targets)[np.arange(rows), (np.arange(rows) - rows // 2) % rows]


def many(mixing, rows=4000):
    """(shares from the targets, shares from the pixels) of many draws."""
    video = np.zeros((rows, 1, SIDE, SIDE, 1), np.uint8)
    video[rows // 2 :] = 255
    targets = np.repeat(np.eye(2, dtype=np.float32), rows // 2, axis=0)
    mixed, targets = compiled(mixing)(video, targets, np.ones(rows), jax.random.key(3))
    foreign = np.abs(np.asarray(mixed).astype(float) - video)
    return np.where(np.arange(rows) < rows // 2, targets[:, 1], targets[:, 0]), foreign[:, 0, :, :, 0] / 255


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX, BOTH])
@pytest.mark.parametrize("rows", [2, 7, ROWS])
def test_targets_are_convex_combinations_with_one_other_row(mixing, rows):
    video, one_hot = marked(rows)
    soft = 0.9 * one_hot + 0.1 / rows
    for targets in (one_hot, soft):
        _, mixed = compiled(mixing)(video, targets, np.ones(rows), jax.random.key(1))
        np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-6)
        share = shares(mixed if targets is one_hot else (mixed - 0.1 / rows) / 0.9)[:, None]
        assert (share > 0).any() and (share <= 1).all()
        np.testing.assert_allclose(mixed, (1 - share) * targets + share * np.roll(targets, rows // 2, 0), atol=1e-6)


def test_mixup_blends_each_clip_in_the_share_of_its_targets():
    video, targets = clips(ROWS), np.eye(ROWS, dtype=np.float32)
    mixed, targets = compiled(MIXUP)(video, targets, np.ones(ROWS), jax.random.key(0))
    share = shares(targets)[:, None, None, None, None].astype(np.float64)
    expected = (1 - share) * video + share * np.roll(video, ROWS // 2, 0)
    assert mixed.dtype == np.uint8 and np.abs(mixed - expected).max() <= 0.5 + 1e-4
    assert len(np.unique(share)) == ROWS, "a share of its own for every clip"


def test_cutmix_takes_one_box_of_all_frames_in_the_share_of_its_area():
    video, targets = marked(ROWS)
    boxes = 0
    for seed in range(20):
        mixed, soft = compiled(CUTMIX)(video, targets, np.ones(ROWS), jax.random.key(seed))
        foreign = np.asarray(mixed) != video
        assert (foreign == foreign[:, :1, :, :, :1]).all(), "all frames and channels alike"
        foreign = foreign[:, 0, :, :, 0]
        np.testing.assert_allclose(shares(soft) * SIDE * 24, foreign.sum((1, 2)), rtol=1e-6)  # whole pixels
        np.testing.assert_array_equal(
            np.asarray(mixed)[foreign[:, None].repeat(2, 1)],
            np.roll(video, ROWS // 2, 0)[foreign[:, None].repeat(2, 1)],
        )
        for box in foreign:
            y, x = box.any(1), box.any(0)
            np.testing.assert_array_equal(box, y[:, None] & x)
            for along in (y, x):
                assert np.abs(np.diff(np.pad(along, 1).astype(int))).sum() <= 2, "one stretch, no gap"
            boxes += box.any() and not box.all()
    assert boxes > 200


@pytest.mark.parametrize("a", [0.3, 1.0])
def test_the_share_follows_the_beta_distribution(a):
    share, pixels = many(Mixing(mixup=a))
    np.testing.assert_allclose(pixels, np.broadcast_to(share[:, None, None], pixels.shape), atol=0.5 / 255 + 1e-5)
    deviation = (1 / (4 * (2 * a + 1))) ** 0.5
    assert abs(share.mean() - 0.5) < 4 * deviation / len(share) ** 0.5
    assert abs(share.std() / deviation - 1) < 0.05


def test_methods_and_unmixed_clips_have_their_probabilities():
    mixed = many(Mixing(mixup=1.0, cutmix=1.0, probability=0.7, switch=0.3))[1]
    inside, outside = mixed.max((1, 2)), mixed.min((1, 2))
    blended = (inside == outside) & (inside > 0) & (inside < 1)
    cut = inside > outside
    for share, expected in ((blended.mean(), 0.7 * 0.7), (cut.mean(), 0.7 * 0.3)):
        # A clip may be mixed in a share too small to be seen.
        assert abs(share - expected) < 4 * (expected * (1 - expected) / len(mixed)) ** 0.5 + 0.005


def test_boxes_reach_every_place_and_are_cut_off_at_the_ends():
    foreign = many(CUTMIX)[1]
    assert foreign.mean(0).min() > 0.1 and foreign.mean(0)[SIDE // 2, SIDE // 2] < 0.5
    for axis in (1, 2):
        cover = foreign.mean(0).mean(2 - axis)
        np.testing.assert_allclose(cover, cover[::-1], atol=0.05)
        assert cover[SIDE // 2] > cover[0]


def test_rows_without_data_neither_give_nor_take():
    """Whatever their pixels are: those of the masked rows are NaN here."""
    mask = np.ones(ROWS, np.float32)
    mask[[1, 4, 12]] = 0  # rows 4 and 12 are partners
    video = np.float32(clips(ROWS))
    video[mask == 0] = np.nan
    targets = np.eye(ROWS, dtype=np.float32)
    mixed, soft = compiled(BOTH)(video, targets, mask, jax.random.key(0))
    still = [1, 4, 9, 12]
    np.testing.assert_array_equal(mixed[np.array(still)], video[still])
    np.testing.assert_array_equal(soft[np.array(still)], targets[still])
    moved = np.setdiff1d(np.arange(ROWS), still)
    assert np.isfinite(mixed[moved]).all()
    other = compiled(BOTH)(video, targets, np.ones(ROWS), jax.random.key(0))[1]
    np.testing.assert_array_equal(soft[moved], other[moved])


def test_a_single_row_stays_as_it_is():
    video, targets = clips(1), np.eye(1, dtype=np.float32)
    mixed, soft = compiled(BOTH)(video, targets, np.ones(1), jax.random.key(0))
    np.testing.assert_array_equal(mixed, video)
    np.testing.assert_array_equal(soft, targets)


def test_draws_depend_on_the_key_alone():
    video, targets = clips(ROWS), np.eye(ROWS, dtype=np.float32)
    mix = partial(compiled(BOTH), video, targets, np.ones(ROWS))
    first, again, other = (mix(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (shares(first[1]) != shares(other[1])).all()


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4)])
def test_eight_devices_mix_as_one_and_none_holds_the_whole_batch(data, fsdp):
    rows = batch_sharding(make_mesh(data=data, fsdp=fsdp), "label", 1)
    mask = np.float32(np.arange(ROWS) != 5)
    arguments = clips(ROWS), np.eye(ROWS, dtype=np.float32), mask
    expected = compiled(BOTH)(*arguments, jax.random.key(7))
    spread = tuple(jax.device_put(x, rows) for x in arguments)
    step = quick_jit(BOTH, out_shardings=rows).lower(*spread, jax.random.key(7)).compile()
    for found, one in zip(step(*spread, jax.random.key(7)), expected, strict=True):
        np.testing.assert_array_equal(found, one)
    gathered = [line for line in step.as_text().splitlines() if "all-gather" in line and f"[{ROWS},4,32,32,3]" in line]
    assert not gathered


def test_nothing_happens_where_nothing_is_mixed():
    video, targets = clips(2), np.eye(2)
    for mixing in (Mixing(), Mixing(mixup=1.0, cutmix=1.0, probability=0.0)):
        assert not mixing.active
        found = mixing(video, targets, np.ones(2), jax.random.key(0))
        assert found[0] is video and found[1] is targets
    assert MIXUP.active and CUTMIX.active


@pytest.mark.parametrize(
    "field, options",
    [
        ("train.mixup=-0.1", dict(mixup=-0.1)),
        ("train.mixup=nan", dict(mixup=float("nan"))),
        ("train.cutmix=inf", dict(cutmix=float("inf"))),
        ("train.mix_probability=1.5", dict(probability=1.5)),
        ("train.mix_switch=-1", dict(switch=-1)),
    ],
)
def test_fields_are_checked(field, options):
    with pytest.raises(ConfigError, match=field):
        Mixing(**options)

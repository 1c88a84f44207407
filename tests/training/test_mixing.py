"""Mixed clips: what a clip takes from its partner, in which share, and that the number of devices does not matter."""

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
SHAPE = (2, SIDE, 24, 3)  # of the clips here, which share their compiled programs
MIXUP, CUTMIX = Mixing(mixup=0.8), Mixing(cutmix=1.0)
BOTH = Mixing(mixup=0.8, cutmix=1.0)


@cache
def compiled(mixing):
    return quick_jit(mixing)


def noise(rows):
    """Returns clips of noise."""
    return clips(rows, frames=SHAPE[0], size=SIDE)[..., : SHAPE[2], :]


def marked(rows):
    """Returns clips of which one partner is black and the other is white, and one-hot targets of the row numbers."""
    video = np.zeros((rows, *SHAPE), np.uint8)
    video[rows // 2 :] = 255
    return video, np.eye(rows, dtype=np.float32)


def shares(targets):
    """Returns the share of the partner in each row of targets that were one-hot."""
    rows = len(targets)
    return np.asarray(targets)[np.arange(rows), (np.arange(rows) - rows // 2) % rows]


def many(mixing, rows=4000):
    """Returns (shares of the partner in the targets, shares in the pixels) of many draws."""
    video = np.zeros((rows, 1, SIDE, SIDE, 1), np.uint8)
    video[rows // 2 :] = 255
    targets = np.repeat(np.eye(2, dtype=np.float32), rows // 2, axis=0)
    mixed, targets = compiled(mixing)(video, targets, np.ones(rows), jax.random.key(3))
    changed = np.abs(np.asarray(mixed).astype(float) - video)
    return np.where(np.arange(rows) < rows // 2, targets[:, 1], targets[:, 0]), changed[:, 0, :, :, 0] / 255


@pytest.mark.quick
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
    video, targets = noise(ROWS), np.eye(ROWS, dtype=np.float32)
    mixed, targets = compiled(MIXUP)(video, targets, np.ones(ROWS), jax.random.key(0))
    share = shares(targets)[:, None, None, None, None].astype(np.float64)
    expected = (1 - share) * video + share * np.roll(video, ROWS // 2, 0)
    assert mixed.dtype == np.uint8 and np.abs(mixed - expected).max() <= 0.5 + 1e-4
    assert len(np.unique(share)) == ROWS, "the share is drawn per clip"


def test_cutmix_takes_one_box_of_all_frames_in_the_share_of_its_area():
    video, targets = marked(ROWS)
    boxes = 0
    for seed in range(20):
        mixed, soft = map(np.asarray, compiled(CUTMIX)(video, targets, np.ones(ROWS), jax.random.key(seed)))
        changed = mixed != video
        assert (changed == changed[:, :1, :, :, :1]).all(), "all frames and channels alike"
        changed = changed[:, 0, :, :, 0]
        np.testing.assert_allclose(shares(soft) * SIDE * 24, changed.sum((1, 2)), rtol=1e-6)  # whole pixels
        in_box = changed[:, None].repeat(2, 1)
        np.testing.assert_array_equal(mixed[in_box], np.roll(video, ROWS // 2, 0)[in_box])
        for box in changed:
            y, x = box.any(1), box.any(0)
            np.testing.assert_array_equal(box, y[:, None] & x)
            for along in (y, x):
                assert np.abs(np.diff(np.pad(along, 1).astype(int))).sum() <= 2, "one interval, no gap"
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


def test_boxes_reach_every_place_and_are_cut_off_at_the_edges():
    coverage = many(CUTMIX)[1].mean(0)
    assert coverage.min() > 0.1 and coverage[SIDE // 2, SIDE // 2] < 0.5
    for axis in (0, 1):
        profile = coverage.mean(axis)
        np.testing.assert_allclose(profile, profile[::-1], atol=0.05)
        assert profile[SIDE // 2] > profile[0]


def test_masked_rows_neither_give_nor_take():
    """The pixels of masked rows, NaN here, reach no other row."""
    mask = np.ones(ROWS, np.float32)
    mask[[1, 4, 12]] = 0  # rows 4 and 12 are partners
    video = np.float32(noise(ROWS))
    video[mask == 0] = np.nan
    targets = np.eye(ROWS, dtype=np.float32)
    mixed, soft = map(np.asarray, compiled(BOTH)(video, targets, mask, jax.random.key(0)))
    unmixed = [1, 4, 9, 12]
    np.testing.assert_array_equal(mixed[unmixed], video[unmixed])
    np.testing.assert_array_equal(soft[unmixed], targets[unmixed])
    others = np.setdiff1d(np.arange(ROWS), unmixed)
    assert np.isfinite(mixed[others]).all()
    unmasked = np.asarray(compiled(BOTH)(video, targets, np.ones(ROWS), jax.random.key(0))[1])
    np.testing.assert_array_equal(soft[others], unmasked[others])


def test_a_single_row_stays_as_it_is():
    video, targets = noise(1), np.eye(1, dtype=np.float32)
    mixed, soft = compiled(BOTH)(video, targets, np.ones(1), jax.random.key(0))
    np.testing.assert_array_equal(mixed, video)
    np.testing.assert_array_equal(soft, targets)


def test_draws_depend_on_the_key_alone():
    video, targets = noise(ROWS), np.eye(ROWS, dtype=np.float32)
    mix = partial(compiled(BOTH), video, targets, np.ones(ROWS))
    first, again, other = (mix(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (shares(first[1]) != shares(other[1])).all()


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4)])
def test_eight_devices_mix_as_one_and_none_gathers_the_whole_batch(data, fsdp):
    sharding = batch_sharding(make_mesh(data=data, fsdp=fsdp), "label", 1)
    mask = np.float32(np.arange(ROWS) != 5)
    arguments = noise(ROWS), np.eye(ROWS, dtype=np.float32), mask
    expected = compiled(BOTH)(*arguments, jax.random.key(7))
    sharded = tuple(jax.device_put(x, sharding) for x in arguments)
    program = quick_jit(BOTH, out_shardings=sharding).lower(*sharded, jax.random.key(7)).compile()
    for actual, one in zip(program(*sharded, jax.random.key(7)), expected, strict=True):
        np.testing.assert_array_equal(actual, one)
    whole_batch = f"[{ROWS},{','.join(map(str, SHAPE))}]"
    gathered = [line for line in program.as_text().splitlines() if "all-gather" in line and whole_batch in line]
    assert not gathered


@pytest.mark.quick
def test_without_a_method_the_arguments_are_returned():
    video, targets = clips(2), np.eye(2)
    for mixing in (Mixing(), Mixing(mixup=1.0, cutmix=1.0, probability=0.0)):
        assert not mixing.active
        mixed, soft = mixing(video, targets, np.ones(2), jax.random.key(0))
        assert mixed is video and soft is targets
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

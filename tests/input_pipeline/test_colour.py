"""Colour changes: those of TokenShift's and DMVR's public code, computed again pixel by pixel with `colorsys`."""

import colorsys

import numpy as np
import pytest

from input_pipeline import colour
from input_pipeline.augment import TrainAugment

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)


def by_pixel(function, x):
    return np.array([function(*pixel) for pixel in x.reshape(-1, 3)]).reshape(x.shape)


def in_hsv(x, change):
    hsv = by_pixel(colorsys.rgb_to_hsv, x)
    change(hsv)
    return by_pixel(colorsys.hsv_to_rgb, hsv)


def rotate(turns):
    def change(hsv):
        hsv[..., 0] = (hsv[..., 0] + turns) % 1

    return change


def saturate(factor):
    def change(hsv):
        hsv[..., 1] = np.minimum(hsv[..., 1] * factor, 1)

    return change


@pytest.mark.quick
@pytest.mark.parametrize(
    "change, strength, expected",
    [
        ("brightness", -1, lambda x: 0.5 * x),
        ("brightness", 1, lambda x: 2.0 * x),
        ("brightness", 0, lambda x: 1.25 * x),
        ("saturation", -1, lambda x: 0.5 * x + 0.5 * (x @ (0.299, 0.587, 0.114))[..., None]),
        ("saturation", 1, lambda x: 3 * x - 2 * (x @ (0.299, 0.587, 0.114))[..., None]),
        ("gamma", -1, lambda x: x**0.8),
        ("gamma", 1, lambda x: x**1.2),
    ],
)
def test_changes_of_tokenshift(change, strength, expected):
    """The ends of the ranges U[.5, 2], U[.5, 3] and U[.8, 1.2] of TokShift-Transformer/data/augmentation.py."""
    strengths = np.zeros(4)
    strengths[colour.CHANGES.index(change)] = strength
    actual = colour.tokenshift(PIXELS, np.array(colour.CHANGES) == change, strengths)
    np.testing.assert_allclose(actual, np.clip(255 * expected(PIXELS / 255), 0, 255), atol=1)


@pytest.mark.quick
def test_the_hue_of_tokenshift_turns_by_up_to_half_the_circle():
    only_hue = np.array(colour.CHANGES) == "hue"
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[None, None]
    third = colour.tokenshift(primaries, only_hue, np.array([0, 0, 0, 2 / 3]))
    np.testing.assert_allclose(third.astype(int), primaries[:, :, [1, 2, 0]], atol=6)  # the hue has 256 levels
    for strength in (-1, 0.4):
        actual = colour.tokenshift(PIXELS, only_hue, np.array([0, 0, 0, strength])) / 255
        np.testing.assert_allclose(actual, in_hsv(PIXELS / 255, rotate(strength / 2)), atol=0.04)


@pytest.mark.quick
def test_the_order_of_tokenshift_is_brightness_saturation_gamma_hue(monkeypatch):
    calls = []
    for name in ("brightness", "color", "gamma", "shift_hue"):
        monkeypatch.setattr(colour, name, lambda clip, value, name=name: calls.append((name, value)) or clip)
    colour.tokenshift(PIXELS, np.ones(4, bool), np.array([-1, 1, -1, 1]))
    names, values = zip(*calls, strict=True)
    assert names == ("brightness", "color", "gamma", "shift_hue")
    np.testing.assert_allclose(values, [0.5, 3.0, 0.8, 0.5])


@pytest.mark.quick
@pytest.mark.parametrize("strengths", [(1, 1, 1, 1), (-1, -1, -1, -1), (0.3, -0.8, 0.9, -0.2)])
def test_the_jitter_of_dmvr(strengths):
    """32 levels added, saturation and contrast 0.6 to 1.4, hue 0.2 turns, in this order (dmvr/processors.py)."""
    clip = (60 + PIXELS * 0.5).astype(np.uint8)
    added, saturation, contrast, hue = np.array(strengths) * (32 / 255, 0.4, 0.4, 0.2)
    x = in_hsv(clip / 255 + added, saturate(1 + saturation))
    mean = x.mean((1, 2), keepdims=True)  # of each frame and channel
    x = in_hsv(mean + (1 + contrast) * (x - mean), rotate(hue))
    np.testing.assert_allclose(colour.jitter(clip, np.array(strengths)), np.clip(255 * x, 0, 255), atol=0.51)


@pytest.mark.quick
def test_grey_is_the_luma():
    actual = colour.grey(PIXELS)
    np.testing.assert_allclose(actual, (PIXELS @ (0.2989, 0.587, 0.114))[..., None].repeat(3, -1), atol=0.6)


def test_probabilities_of_the_jitter_and_of_grey():
    apply = TrainAugment(size=4, short_side=(4, 4), flip=0.0, colour_jitter=0.8, grey=0.1)
    frames = np.full((1, 4, 4, 3), (90, 120, 60), np.uint8)
    rng = np.random.default_rng(0)
    clips = np.stack([apply(frames, 0, rng)[0] for _ in range(3000)]).astype(int)
    is_grey = (np.ptp(clips, axis=-1) == 0).all((1, 2, 3))
    changed = (clips != frames).any((1, 2, 3, 4)) & ~is_grey
    assert abs(is_grey.mean() - 0.1) < 0.02 and abs(changed.mean() - 0.72) < 0.03


def test_stretch_scales_height_and_width_apart():
    y, x = np.mgrid[:160, :200].astype(np.uint8)
    ramp = np.stack([y, x, 0 * x], -1)[None]
    apply = TrainAugment(size=56, short_side=(64, 64), flip=0.0, stretch=(0.9, 1.33))
    rng = np.random.default_rng(0)
    clips = [apply(ramp, 0, rng)[0][0].astype(float) for _ in range(500)]
    # Source pixels in a crop of 56 at a scale of 64/160: 140 over the factor.
    spans = np.array([(clip[-1, 9, 0] - clip[0, 9, 0], clip[9, -1, 1] - clip[9, 0, 1]) for clip in clips]) * 56 / 55
    factors = 140 / spans
    assert 0.89 < factors.min() < 0.93 and 1.29 < factors.max() < 1.35
    assert abs(factors.mean() - 1.115) < 0.02 and abs(np.corrcoef(factors.T)[0, 1]) < 0.12
    starts = np.array([clip[0, 0, :2] for clip in clips])
    assert starts.min() <= 1 and starts[:, 1].max() > 80

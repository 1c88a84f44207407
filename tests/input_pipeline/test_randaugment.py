"""RandAugment: each operation equals that of Pillow for a picture, and treats all frames of a clip alike."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from input_pipeline import randaugment
from input_pipeline.randaugment import OPERATIONS, RandAugment


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(height=60, width=80, blur=2, seed=0):
    """Returns (y, x, 3) uint8: soft shapes of all levels but the darkest and the lightest."""
    soft = cv2.GaussianBlur(noise(height, width, 3, seed=seed), (0, 0), blur).astype(float) - 127.5
    return (np.clip(soft * 3, -105, 100) + 120).astype(np.uint8)


def transformed(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(128,) * 3)


def enhanced(kind):
    return lambda image, factor: kind(image).enhance(factor)


PILLOW = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": ImageOps.posterize,
    "solarize": ImageOps.solarize,
    "solarize_add": lambda image, add: image.point([min(i + add, 255) if i < 128 else i for i in range(256)] * 3),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(128,) * 3),
    "shear_x": lambda image, slope: transformed(image, 1, slope, 0, 0, 1, 0),
    "shear_y": lambda image, slope: transformed(image, 1, 0, 0, slope, 1, 0),
    "translate_x": lambda image, share: transformed(image, 1, 0, share * image.width, 0, 1, 0),
    "translate_y": lambda image, share: transformed(image, 1, 0, 0, 0, 1, share * image.height),
}
EXACT = [
    ("equalize",),
    ("invert",),
    ("posterize", 1),
    ("posterize", 2),
    ("posterize", 4),
    ("posterize", 8),
    ("solarize", 0),
    ("solarize", 77),
    ("solarize", 256),
    ("solarize_add", 77),
]
# Pillow truncates levels that are rounded here.
ROUNDED = [
    ("autocontrast",),
    *(
        (name, factor)
        for name in ("color", "contrast", "brightness", "sharpness")
        for factor in (0.1, 0.6, 1.0, 1.4, 1.9)
    ),
]
MOVED = [
    ("rotate", -30),
    ("rotate", -8),
    ("rotate", 0),
    ("rotate", 21),
    ("shear_x", -0.3),
    ("shear_x", 0.2),
    ("shear_y", -0.3),
    ("shear_y", 0.2),
    ("translate_x", -0.45),
    ("translate_x", 0.21),
    ("translate_y", -0.45),
    ("translate_y", 0.21),
]


def both(frame, name, *arguments):
    """Returns the result of an operation on a picture here and in Pillow."""
    actual = getattr(randaugment, name)(frame[None], *arguments)[0]
    assert actual.shape == frame.shape and actual.dtype == np.uint8
    return actual.astype(int), np.asarray(PILLOW[name](Image.fromarray(frame), *arguments)).astype(int)


@pytest.mark.parametrize("operation", EXACT)
@pytest.mark.parametrize("seed", range(3))
def test_operations_equal_pillows(operation, seed):
    np.testing.assert_array_equal(*both(picture(seed=seed), *operation))


@pytest.mark.parametrize("operation", ROUNDED)
@pytest.mark.parametrize("seed", range(3))
def test_operations_equal_pillows_but_for_rounding(operation, seed):
    np.testing.assert_allclose(*both(picture(seed=seed), *operation), atol=1, rtol=0)


@pytest.mark.parametrize("operation", MOVED)
def test_pictures_move_as_pillow_moves_them(operation):
    """Away from the border, which the two cubic interpolations (a = -0.75 and -0.5) continue in different ways."""
    actual, expected = both(picture(blur=6), *operation)
    covered = both(np.zeros((60, 80, 3), np.uint8), *operation)[1].max(-1)
    within = cv2.erode(np.uint8(covered == 0), np.ones((5, 5)), borderValue=0) > 0
    outside = cv2.erode(np.uint8(covered == 128), np.ones((5, 5)), borderValue=1) > 0
    assert within.sum() > 1000 and (outside.any() or operation == ("rotate", 0))
    np.testing.assert_allclose(actual[within], expected[within], atol=2, rtol=0)
    assert (actual[outside] == 128).all()


@pytest.mark.parametrize("level", [0, 90, 255])
def test_pictures_of_one_colour(level):
    frame = np.full((12, 16, 3), level, np.uint8)
    for operation in (("autocontrast",), ("equalize",), ("contrast", 1.4), ("color", 1.9), ("sharpness", 0.1)):
        np.testing.assert_array_equal(*both(frame, *operation))


@pytest.mark.parametrize("name, arguments", [(name, arguments) for name, *arguments in (*EXACT, *ROUNDED)])
def test_levels_are_those_of_the_whole_clip(name, arguments):
    """A clip of different frames changes like the picture that holds them side by side: nothing flickers."""
    frames = np.stack([picture(seed=seed) // scale + 1 for seed, scale in enumerate((1, 2, 4))])
    wide = np.concatenate(list(frames), axis=1)[None]
    operation = getattr(randaugment, name)
    actual, expected = operation(frames, *arguments), operation(wide, *arguments)[0]
    expected = np.stack(np.split(expected, 3, axis=1))
    if name == "sharpness":  # looks at neighbours, which the wide picture has at the seams
        actual, expected = actual[:, :, 1:-1], expected[:, :, 1:-1]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
@pytest.mark.parametrize("severity", [-1.0, -0.7, 0.0, 0.7, 1.0])
def test_operations_treat_frames_alike_and_do_not_change_their_argument(number, severity):
    frame = picture()
    clip = np.stack([frame] * 3)
    changed = OPERATIONS[number](clip, severity)
    assert changed.shape == clip.shape and changed.dtype == np.uint8 and changed.flags.c_contiguous
    assert (changed == changed[0]).all()
    assert (clip == frame).all()
    assert np.ptp(changed) > 0, "no severity makes a blank clip"


# The parameters of the operations at severities +1 and -1, in the order of the table.
EXTREMES = (
    ("autocontrast", ()),
    ("equalize", ()),
    ("invert", ()),
    ("rotate", (30, -30)),
    ("posterize", (1, 1)),
    ("solarize", (0, 0)),
    ("solarize_add", (110, 110)),
    ("color", (1.9, 0.1)),
    ("contrast", (1.9, 0.1)),
    ("brightness", (1.9, 0.1)),
    ("sharpness", (1.9, 0.1)),
    ("shear_x", (0.3, -0.3)),
    ("shear_y", (0.3, -0.3)),
    ("translate_x", (0.45, -0.45)),
    ("translate_y", (0.45, -0.45)),
)


@pytest.mark.parametrize("number", range(len(EXTREMES)))
def test_severity_reaches_the_published_extremes(number):
    name, ends = EXTREMES[number]
    clip = picture()[None]
    for severity, value in zip((1.0, -1.0), ends or (None, None), strict=True):
        expected = getattr(randaugment, name)(clip, *(() if value is None else (value,)))
        difference = OPERATIONS[number](clip, severity).astype(int) - expected
        assert abs(difference).max() <= 1
    assert len(EXTREMES) == len(OPERATIONS)


@pytest.mark.parametrize("number, argument", [(4, 2), (5, 77), (6, 77)])
def test_mvits_magnitude_is_the_published_one(number, argument):
    """Magnitude 7 keeps two bits, inverts levels from 256 - 179 up, and adds 77."""
    clip = picture()[None]
    expected = getattr(randaugment, EXTREMES[number][0])(clip, argument)
    np.testing.assert_array_equal(OPERATIONS[number](clip, 0.7), expected)


def test_draws_have_their_distributions(monkeypatch):
    """Operations uniform, half of them applied, severities normal around the magnitude, either direction."""
    drawn = []

    def record(number):
        return lambda clip, severity: drawn.append((number, severity)) or clip

    monkeypatch.setattr(randaugment, "OPERATIONS", tuple(map(record, range(len(OPERATIONS)))))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        RandAugment(layers=4)(noise(1, 2, 2, 3), rng)
    numbers, severities = map(np.array, zip(*drawn, strict=True))
    assert abs(len(drawn) - 6000) < 4 * (12000 / 4) ** 0.5
    counts = np.bincount(numbers, minlength=len(OPERATIONS))
    assert abs(counts - 400).max() < 4 * 400**0.5
    assert abs((severities > 0).mean() - 0.5) < 4 * 0.5 / 6000**0.5
    assert abs(abs(severities).mean() - 0.7) < 0.003 and abs(abs(severities).std() - 0.05) < 0.003
    drawn.clear()
    for _ in range(300):
        RandAugment(layers=4, magnitude=10.0, std=2.0)(noise(1, 2, 2, 3), rng)
    severities = np.abs([severity for _, severity in drawn])
    assert severities.max() == 1 and 0.4 < (severities == 1).mean() < 0.6


@pytest.mark.quick
def test_draws_depend_on_the_generator_alone():
    clip = picture()[None]
    results = [RandAugment(layers=4)(clip, np.random.default_rng(seed)) for seed in (1, 1, *range(2, 12))]
    np.testing.assert_array_equal(results[0], results[1])
    assert any((result != results[0]).any() for result in results[2:])
    np.testing.assert_array_equal(RandAugment(layers=0)(clip, np.random.default_rng(0)), clip)

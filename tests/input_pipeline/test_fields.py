"""The types of fields: which values an annotation allows."""

import math

import numpy as np
import pytest

from input_pipeline.fields import mistakes, shown

GOOD = [
    (int, 3),
    (int, np.int64(3)),
    (float, 3),
    (float, np.float32(0.5)),
    (str, "a"),
    (bool, False),
    (int | None, None),
    (int | str, "auto"),
    (tuple[int, int], [1, 2]),
    (tuple[float, ...], ()),
    (tuple[tuple[str | int, str | int], ...], (("a", 1), [0, "b"])),
    (tuple, (1, "a")),
]
BAD = [
    (int, True),
    (int, 3.0),
    (int, 2**31),
    (int, -(10**5000)),
    (int, None),
    (float, math.nan),
    (float, -math.inf),
    (float, 10**400),
    (float, "1"),
    (float, True),
    (str, ""),
    (str, 7),
    (bool, 1),
    (int | None, "1"),
    (tuple[int, int], (1,)),
    (tuple[int, int], (1, 2, 3)),
    (tuple[int, int], 1),
    (tuple[int, int], "12"),
    (tuple[float, ...], (0.1, math.nan)),
    (tuple[tuple[str | int, str | int], ...], ("ab",)),
]


@pytest.mark.quick
@pytest.mark.parametrize("annotation, value", GOOD)
def test_values_that_fit(annotation, value):
    assert mistakes({"x": value}, {"x": annotation}) == {}


@pytest.mark.quick
@pytest.mark.parametrize("annotation, value", BAD, ids=lambda x: type(x).__name__)
def test_values_that_do_not_fit_are_answered_in_words(annotation, value):
    (expected,) = mistakes({"x": value}, {"x": annotation}).values()
    assert expected and "\n" not in f"{shown(value)} must be {expected}."
    assert len(shown(value)) < 80

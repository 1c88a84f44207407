"""Patches in the order of windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidformers.layers.tokens import tokens_of_maps
from vidformers.layers.windows import fold, shift_windows, unfold, unshift_windows

GRID, WINDOW = (4, 6, 8), (2, 3, 4)


@pytest.fixture
def maps():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *GRID, 5)).astype(np.float32))


@pytest.mark.quick
def test_a_window_has_its_patches_in_the_order_of_rows_columns_and_frames(maps):
    windows = fold(maps, WINDOW, (1, 2, 3))
    window = np.roll(maps, (-1, -2, -3), (1, 2, 3))[1, 2:4, 3:6, 4:8]  # the last window
    np.testing.assert_array_equal(windows[1, -1], np.transpose(window, (1, 2, 0, 3)).reshape(-1, 5))
    np.testing.assert_array_equal(unfold(windows, GRID, WINDOW, (1, 2, 3)), maps)


@pytest.mark.quick
@pytest.mark.parametrize("shift", [(0, 0, 0), (0, 1, 2), (1, 2, 3), (0, 0, 1)])
def test_shifting_windows_equals_unfolding_and_folding_them(maps, shift):
    windows = fold(maps, WINDOW, (0, 0, 0))
    shifted, backward = jax.vjp(lambda x: shift_windows(x, GRID, WINDOW, shift), windows)
    np.testing.assert_array_equal(shifted, fold(maps, WINDOW, shift))
    unshifted, backward_of_inverse = jax.vjp(lambda x: unshift_windows(x, GRID, WINDOW, shift), shifted)
    np.testing.assert_array_equal(unshifted, windows)
    # The gradient of a permutation is its inverse.
    np.testing.assert_array_equal(backward(shifted)[0], windows)
    np.testing.assert_array_equal(backward_of_inverse(windows)[0], shifted)


@pytest.mark.quick
def test_tokens_by_window_have_the_same_maps(maps):
    tokens = tokens_of_maps(maps, jnp.zeros((2, 0, 5)))
    by_window = tokens.by_window(WINDOW)
    np.testing.assert_array_equal(by_window.patches, fold(maps, WINDOW, (0, 0, 0)))
    np.testing.assert_array_equal(by_window.maps, maps)
    assert by_window.class_rows == 0

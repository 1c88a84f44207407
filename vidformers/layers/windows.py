"""The order of patches in 3-D windows of the grid.

The patches of a window are in the order of rows, columns and frames (j k i). On TPUs the last two axes of an array are
stored in tiles of 8 x 128. With frames before d, the windows of 8 frames are made by moving whole tiles.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange


def fold(maps, window, shift):
    """Returns windows (b g m d) of maps (b t y x d).

    Args:
        maps: patches on their grid, which the window divides.
        window: (t, y, x).
        shift: (t, y, x) of the first patch of the first window. The last windows go on at the other end of the grid.
    """
    (i, j, k), maps = window, jnp.moveaxis(maps, 1, 3)
    if any(shift):
        maps = jnp.roll(maps, [-s for s in shift], (3, 1, 2))
    return rearrange(maps, "b (y j) (x k) (t i) d -> b (t y x) (j k i) d", i=i, j=j, k=k)


def unfold(windows, grid, window, shift):
    """Returns maps (b t y x d) of windows (b g m d) of the grid (t, y, x): the inverse of `fold`."""
    (t, y, _), (i, j, k) = (n // w for n, w in zip(grid, window, strict=True)), window
    maps = rearrange(windows, "b (t y x) (j k i) d -> b (y j) (x k) (t i) d", t=t, y=y, i=i, j=j, k=k)
    if any(shift):
        maps = jnp.roll(maps, shift, (3, 1, 2))
    return jnp.moveaxis(maps, 3, 1)


def shift_windows(windows, grid, window, shift):
    """Returns windows that start `shift` later, of windows (b g m d) that start at 0: fold(unfold(windows)) in one."""
    return _moved(windows, grid, window, shift, False) if any(shift) else windows


def unshift_windows(windows, grid, window, shift):
    """Returns the inverse of `shift_windows`."""
    return _moved(windows, grid, window, shift, True) if any(shift) else windows


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _moved(windows, grid, window, shift, back: bool):
    """Returns `shift_windows`, or with `back` its inverse.

    A window goes in up to eight parts to neighbouring windows. The parts are written in place, because XLA takes longer
    to join them. The barriers keep XLA from computing the norms before and after in this order of axes, in which it
    copies their sums (benchmarks/NOTES.md).
    """
    counts = [n // w for n, w in zip(grid, window, strict=True)]
    i, j, k = window
    old = jax.lax.optimization_barrier(windows).reshape(-1, *counts, j, k, i, windows.shape[-1])
    new, places = old, (6, 4, 5)  # the axes of places within a window, for t, y and x
    for parts in itertools.product(*map(_parts, window, shift)):
        part, starts = old, [0] * old.ndim
        for place, (_, start, size, start_in_new) in zip(places, parts, strict=True):
            start, starts[place] = (start_in_new, start) if back else (start, start_in_new)
            part = jax.lax.slice_in_dim(part, start, start + size, axis=place)
        steps = [step if back else -step for step, *_ in parts]
        new = jax.lax.dynamic_update_slice(new, jnp.roll(part, steps, (1, 2, 3)), starts)
    return jax.lax.optimization_barrier(new.reshape(windows.shape))


def _parts(size: int, shift: int):
    """Returns the parts of an axis of a window: (windows that it moves to the front, its start, size, new start)."""
    return [(0, shift, size - shift, 0), (1, 0, shift, size - shift)] if shift else [(0, 0, size, 0)]


_moved.defvjp(
    lambda *args: (_moved(*args), None),
    lambda grid, window, shift, back, _, cotangent: (_moved(cotangent, grid, window, shift, not back),),
)

"""Attention over time at one position of the grid: the time attention of TimeSformer."""

from dataclasses import dataclass

import jax.numpy as jnp

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme


@dataclass(frozen=True)
class Time(Scheme):
    """Patch (p, t) attends to patch p of every frame: T keys, and the class token (MEViT eq. 7)."""

    group_extent = "time"

    def fold(self, patches, grid):
        return jnp.swapaxes(patches, 1, 2)

    def unfold(self, groups, grid):
        return jnp.swapaxes(groups, 1, 2)

    def visible(self, query, key):
        return (query.y == key.y) & (query.x == key.x)


def _expected_keys(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x): the same position in every frame."""
    return [(s, y, x) for s in range(grid[0])]


register("time", Time, grid=(4, 3, 3), expected_keys=_expected_keys)

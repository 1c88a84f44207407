"""Attention over time at one position of the grid: the time attention of TimeSformer."""

from dataclasses import dataclass

from einops import rearrange

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme


@dataclass(frozen=True)
class Time(Scheme):
    """Patch (p, t) attends to patch p of every frame: T keys, and the class token (MEViT eq. 7)."""

    group_extent = "time"

    def fold(self, patches):
        return rearrange(patches, "b t y x ... -> b (y x) t ...")

    def unfold(self, groups, grid):
        return rearrange(groups, "b (y x) t ... -> b t y x ...", y=grid[1])

    def visible(self, query, key):
        return (query.y == key.y) & (query.x == key.x)


def _expected_keys(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x): the same position in every frame."""
    return [(s, y, x) for s in range(grid[0])]


register("time", Time, grid=(4, 3, 3), expected_keys=_expected_keys)

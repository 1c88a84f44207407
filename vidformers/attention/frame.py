"""Attention inside a frame: frame-wise ViT, and the space attention of divided models."""

from dataclasses import dataclass

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme


@dataclass(frozen=True)
class Frame(Scheme):
    """Patch (p, t) attends to all patches of frame t: N keys, and the class token (MEViT eq. 6)."""

    keeps_patches = True

    def fold(self, patches, grid):
        return patches

    def unfold(self, groups, grid):
        return groups

    def visible(self, query, key):
        return query.t == key.t


def _expected_keys(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x): all patches of frame t."""
    return [(t, row, column) for row in range(grid[1]) for column in range(grid[2])]


register("frame", Frame, grid=(4, 3, 3), expected_keys=_expected_keys, class_tokens=("none", "clip", "frame"))

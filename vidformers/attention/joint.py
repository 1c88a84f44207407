"""Joint attention over all tokens of a clip."""

from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme


@dataclass(frozen=True)
class Joint(Scheme):
    """Every patch attends to every patch: NT keys, and the class token (MEViT eq. 3)."""

    keeps_patches = True
    group_extent = "clip"

    def fold(self, patches, grid):
        return rearrange(patches, "b t n d -> b 1 (t n) d")

    def unfold(self, groups, grid):
        return rearrange(groups, "b 1 (t n) d -> b t n d", t=grid[0])

    def visible(self, query, key):
        return jnp.ones(jnp.broadcast_shapes(query.t.shape, key.t.shape), bool)


def _expected_keys(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x): all patches of all frames."""
    return [(s, row, column) for s in range(grid[0]) for row in range(grid[1]) for column in range(grid[2])]


register("joint", Joint, grid=(4, 3, 3), expected_keys=_expected_keys)

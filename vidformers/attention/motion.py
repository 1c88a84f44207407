"""MEViT's motion attention: a patch attends to an M x M block of patches, in every frame."""

from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme
from vidformers.errors import require
from vidformers.parallel.activations import has_context


@dataclass(frozen=True)
class Motion(Scheme):
    """Patch (p, t) attends to the M x M patches of its block in every frame: T M^2 keys (MEViT eq. 8).

    The class token is one more key with `class_keys` (see `core.SelfAttention`).

    A block is meant to contain the motion of an object. Blocks are a fixed partition of the grid, not a sliding
    neighbourhood. Table 1 of the paper includes M=3, which does not divide the 14 x 14 grid. The paper does not say how
    the blocks at the edge are formed. Here the grid is padded at the bottom and right and the padding is hidden, which
    equals smaller blocks at the edge. M=1 is time attention. M as large as the grid is joint attention between patches.

    Attributes:
        size: M, in patches.

    Raises:
        ConfigError: the block size is below 1.
    """

    group_extent = "time"

    size: int

    def __post_init__(self):
        require(self.size >= 1, f"model.block_size={self.size} is too small. Set at least 1 patch.")

    def fold(self, patches, grid):
        m, y = self.size, grid[1]
        if has_context():  # frames are sharded, so they come first (see `Scheme.group_extent`)
            patches = _pad(rearrange(patches, "b t (y x) d -> b t y x d", y=y), m)
            return rearrange(patches, "b t (by i) (bx j) d -> b (by bx) (t i j) d", i=m, j=m)
        # Frames and places change sides first. On TPUs the last two axes are stored in tiles of 8 x 128, so that a tile
        # then holds 8 frames of one place, and the second step moves whole tiles. In one step it takes twice as long,
        # by the estimate of libtpu 0.0.42 for a v5e.
        patches = jnp.moveaxis(_pad(rearrange(patches, "b t (y x) d -> b t y x d", y=y), m), 1, 3)
        return rearrange(patches, "b (by i) (bx j) t d -> b (by bx) (i j t) d", i=m, j=m)

    def unfold(self, groups, grid):
        m, (t, y, x) = self.size, grid
        if has_context():
            patches = rearrange(groups, "b (by bx) (t i j) d -> b t (by i) (bx j) d", t=t, i=m, j=m, by=-(-y // m))
            return rearrange(patches[:, :, :y, :x], "b t y x d -> b t (y x) d")
        patches = rearrange(groups, "b (by bx) (i j t) d -> b (by i) (bx j) t d", t=t, i=m, j=m, by=-(-y // m))
        return rearrange(patches[:, :y, :x], "b y x t d -> b t (y x) d")

    def visible(self, query, key):
        m = self.size
        return (query.y // m == key.y // m) & (query.x // m == key.x // m)


def _pad(patches, m: int):
    """Returns patches (b t y x d) with the ends of y and of x padded to a multiple of m."""
    y, x = patches.shape[2:4]
    return jnp.pad(patches, [(0, 0), (0, 0), (0, -y % m), (0, -x % m), (0, 0)]) if y % m or x % m else patches


def _block_of_2(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x) on a 6 x 6 grid: its block in every frame.

    Rows and columns 0 and 1 form one block, 2 and 3 the next, 4 and 5 the last.
    """
    first = {0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 4}
    rows, columns = (first[y], first[y] + 1), (first[x], first[x] + 1)
    return [(s, row, column) for s in range(grid[0]) for row in rows for column in columns]


def _ragged_block_of_3(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x) on a 7 x 7 grid: its block in every frame.

    Rows and columns 0 to 2 form one block, 3 to 5 the next, 6 the last.
    """
    rows = (0, 1, 2) if y < 3 else (3, 4, 5) if y < 6 else (6,)
    columns = (0, 1, 2) if x < 3 else (3, 4, 5) if x < 6 else (6,)
    return [(s, row, column) for s in range(grid[0]) for row in rows for column in columns]


register("motion", lambda: Motion(2), grid=(4, 6, 6), expected_keys=_block_of_2)
register("motion_ragged", lambda: Motion(3), grid=(4, 7, 7), expected_keys=_ragged_block_of_3)

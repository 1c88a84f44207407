"""What an attention scheme is: a partition of the patch grid, and who sees whom."""

from typing import NamedTuple

import numpy as np


class Position(NamedTuple):
    """Where tokens stand on the grid: integer arrays of one shape. A class token stands with its group."""

    t: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Scheme:
    """A partition of the patch grid into groups, inside which every patch sees every patch.

    `fold` and `unfold` are the gathered form, which runs; `visible` is the masked form, which defines it.
    """

    ordered = True  # whether the keys of a group follow each other in an order that the cosine kernel may weigh by
    reach = "frame"  # of a group: its 'frame', some patches of every frame ('time'), or the whole 'clip'

    def fold(self, patches):
        """b t y x ... -> b g n ..., padded with zeros at the end of a group where the grid does not divide."""
        raise NotImplementedError

    def unfold(self, groups, grid: tuple[int, int, int]):
        """b g n ... -> b t y x ..., without the padding."""
        raise NotImplementedError

    def visible(self, query: Position, key: Position) -> np.ndarray:
        """Whether a token at `query` sees the token at `key`, elementwise."""
        raise NotImplementedError

    def move(self, patches, classes):
        """Shifts queries, keys or values in time before they meet: [q, k, v] each (b t y x h e), and the class tokens'
        each (b g h e) or None. Most schemes leave them in place."""
        return patches, classes

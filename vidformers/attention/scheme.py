"""The base class of attention schemes: a partition of the patch grid, and the keys that each query sees."""

from typing import NamedTuple

import numpy as np


class Position(NamedTuple):
    """Positions of tokens on the grid: integer arrays of one shape. A class token has a position in its group."""

    t: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Scheme:
    """A partition of the patch grid into groups, in which every patch sees every patch of its group.

    `fold` and `unfold` are the gathered form, which models run. `visible` is the masked form, which defines the scheme.

    Attributes:
        ordered: whether the keys of a group have an order by which the cosine kernel can weigh them.
        reach: what a group holds: one 'frame', some patches of every frame ('time'), or the whole 'clip'.
    """

    ordered = True
    group_extent = "frame"

    @property
    def reads_zeros_beyond_clip(self) -> bool:
        """Whether `move` fills in zeros for frames before the first or after the last one."""
        return False

    def fold(self, patches):
        """Returns groups (b g n ...) of patches (b t y x ...), padded with zeros where groups do not fit the grid."""
        raise NotImplementedError

    def unfold(self, groups, grid: tuple[int, int, int]):
        """Returns patches (b t y x ...) of groups (b g n ...), without the padding."""
        raise NotImplementedError

    def visible(self, query: Position, key: Position) -> np.ndarray:
        """Returns whether a token at `query` sees the token at `key`, elementwise."""
        raise NotImplementedError

    def shift_in_time(self, patches, class_tokens):
        """Returns queries, keys and values shifted in time, before attention. Most schemes do not shift them.

        Args:
            patches: [q, k, v], each (b t y x h e).
            class_tokens: [q, k, v] of the class token of each group, each (b g h e), or None.
        """
        return patches, class_tokens

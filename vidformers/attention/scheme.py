"""The base class of attention schemes: a partition of the patch grid into groups that attend to each other."""

from typing import NamedTuple

import numpy as np


class Position(NamedTuple):
    """Positions of tokens on the grid: NumPy arrays of integers, of one shape.

    A class token has the position of the first patch of its group, so that `Scheme.visible` treats it as a member of
    the group.
    """

    t: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Scheme:
    """A partition of the patch grid into groups. Every patch attends to every patch of its group.

    The pattern is written twice. The gathered form, which models run, calls `fold`, computes attention inside each
    group, and calls `unfold`. The masked form, the reference in tests, computes attention over all tokens with the mask
    that `visible` returns. Before attention, a scheme may also replace heads or tokens of queries, keys and values by
    those of neighbouring frames, in `shift_in_time`.

    Attributes:
        ordered: whether the order of the tokens in a group is meaningful. The cosine kernel requires it. False if keys
            are shifted between frames, because their order then has no meaning.
        group_extent: what a group contains, which decides the sharding under context parallelism (see `core`).
            'frame': patches of one frame. There is no communication.
            'time': some patches of every frame. An all-to-all moves the sharding from frames to groups. In the token
                axis n of (b g n ...), `fold` must put frames first, as in "(t i j)".
            'clip': all patches, as a single group. Keys and values are all-gathered.
    """

    ordered = True
    group_extent = "frame"

    @property
    def reads_zeros_beyond_clip(self) -> bool:
        """Whether `shift_in_time` uses zeros for the frames before the first and after the last one.

        Only `vidformers.pretrained.still_clip` reads this property. `init.json` then states how the model treats a clip
        of identical frames.
        """
        return False

    def fold(self, patches):
        """Returns groups (b g n ...) of patches (b t y x ...).

        Where the grid does not divide into equal groups, the incomplete groups are padded with zeros.

        `patches` is a JAX array or a NumPy array of any dtype. For a NumPy array the result must be one, too: `core`
        folds a mask of ones to find the padding, and the result must stay concrete under jit. einops keeps the kind of
        array; a scheme that pads must choose between np.pad and jnp.pad, as `Motion` does.
        """
        raise NotImplementedError

    def unfold(self, groups, grid: tuple[int, int, int]):
        """Returns patches (b t y x ...) of groups (b g n ...), without the padding. `grid` is (t, y, x)."""
        raise NotImplementedError

    def visible(self, query: Position, key: Position) -> np.ndarray:
        """Returns the mask (q k): whether the token at `query` attends to the token at `key`.

        The arrays of `query` have the shape (q 1) and those of `key` (1 k), so that comparisons broadcast.
        """
        raise NotImplementedError

    def shift_in_time(self, patches_qkv, class_qkv):
        """Returns queries, keys and values with heads or tokens taken from neighbouring frames, before they are folded.

        The default returns the arguments unchanged.

        Args:
            patches_qkv: [q, k, v] of patches, each (b t y x h e).
            class_qkv: [q, k, v] of the class token of each group, each (b g h e), or None.
        """
        return patches_qkv, class_qkv

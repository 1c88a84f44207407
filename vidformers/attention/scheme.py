"""The base class of attention schemes: which keys each query attends to, and how to gather them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Position(NamedTuple):
    """Positions of patches on the grid: arrays of integers, of one shape."""

    t: jax.Array
    y: jax.Array
    x: jax.Array


class Scheme:
    """Which patches each patch attends to. The base class is a partition of the patches into groups.

    `visible` is the definition: the masked form, the reference in tests, computes attention over all tokens under this
    mask. Models run the gathered form, which computes the same with fewer products: `fold` moves the patches into
    groups, attention is computed inside each group, and `unfold` moves them back.

    - A partition is `whole`: a query attends to every patch of its group, so attention needs no mask.
    - Other schemes set `whole` to False. The mask of a group is then computed in the program, by `visible`.
    - A scheme with `reads_neighbours` also attends to patches of other groups, which `neighbourhood` gathers.

    Before attention, a scheme may replace heads or tokens of queries, keys and values by those of neighbouring frames,
    in `shift_in_time`.

    Attributes:
        whole: whether the scheme is a partition: it reads no neighbours, and `visible` is True within a group.
        reads_neighbours: whether `neighbourhood` adds keys of other groups.
        causal: whether no patch attends to a later frame. `SelfAttention` then refuses class tokens of the clip as
            keys, because they carry all frames to every query.
        ordered: whether the order of the tokens in a group is meaningful. The cosine kernel requires it. False if keys
            are shifted between frames, because their order then has no meaning.
        keeps_patches: whether a group is a frame or the clip, in the order of the grid, so that `fold` moves no patch.
        group_extent: what a group contains, which decides the sharding under context parallelism (see `core`).
            'frame': patches of one frame or of a few consecutive ones. The axis g keeps the sharding of the frames.
            'time': some patches of every frame. An all-to-all moves the sharding from frames to groups. Under context
                parallelism (`has_context`), `fold` must then put frames first in the token axis, as in "(t i j)".
            'clip': all patches, as a single group, frames first. Keys and values are all-gathered.
    """

    whole = True
    reads_neighbours = False
    causal = False
    ordered = True
    keeps_patches = False
    group_extent = "frame"

    @property
    def reads_zeros_beyond_clip(self) -> bool:
        """Whether `shift_in_time` uses zeros for the frames before the first and after the last one.

        Only `vidformers.pretrained.still_clip` reads this property. `init.json` then states how the model treats a clip
        of identical frames.
        """
        return False

    def fold(self, patches, grid: tuple[int, int, int]):
        """Returns groups (b g m d) of patches (b t n d), where n = y x. `grid` is (t, y, x).

        Where the grid does not divide into equal groups, the incomplete groups are padded with zeros. Padding is hidden
        as keys.
        """
        raise NotImplementedError

    def unfold(self, groups, grid: tuple[int, int, int]):
        """Returns patches (b t n d) of groups (b g m d), without the padding: the inverse of `fold`."""
        raise NotImplementedError

    def neighbourhood(self, groups, grid: tuple[int, int, int]):
        """Returns the tokens (b g k ...) whose keys each group gathers, of groups (b g m ...).

        A group at the edge of the clip gets zeros in place of neighbours that do not exist; these are hidden. The
        default is the group itself. Overridden by schemes with `reads_neighbours`; see `with_neighbours`.
        """
        return groups

    def visible(self, query: Position, key: Position) -> jax.Array:
        """Returns the mask (... q k): whether the patch at `query` attends to the patch at `key`.

        The arrays of `query` have the shape (... q 1) and those of `key` (... 1 k), so that comparisons broadcast.
        """
        raise NotImplementedError

    def shift_in_time(self, x, letter: str, class_rows: int):
        """Returns queries, keys or values with heads or tokens taken from neighbouring frames.

        The default returns x unchanged.

        Args:
            x: (b t n h e), in groups. The last `class_rows` of the n tokens are the class token of the frame.
            letter: 'Q', 'K' or 'V'.
            class_rows: 0 or 1.
        """
        return x


def with_neighbours(groups, offsets, stride: int = 1):
    """Returns the tokens (b g k ...) of the groups (b g m ...) at several offsets, side by side.

    Args:
        groups: (b g m ...), in an order in which a group and its neighbour are `stride` apart.
        offsets: the neighbours of group i are the groups i + offset * stride. Zeros replace those that do not exist.
        stride: number of groups between a group and its neighbour.
    """
    count = groups.shape[1]
    before, after = max(0, -min(offsets)) * stride, max(0, *offsets) * stride
    padded = jnp.pad(groups, [(0, 0), (before, after)] + [(0, 0)] * (groups.ndim - 2))
    starts = [before + offset * stride for offset in offsets]
    return jnp.concatenate([padded[:, start : start + count] for start in starts], axis=2)


def numbered(grid: tuple[int, int, int]):
    """Returns the number of every patch as tokens (1 t n 1), from 1 on, so that `fold` pads with 0."""
    t, y, x = grid
    return 1 + jax.lax.iota(jnp.int32, t * y * x).reshape(1, t, y * x, 1)


def position(number, grid: tuple[int, int, int]) -> Position:
    """Returns the positions of patches with these numbers, as from `numbered`."""
    _, y, x = grid
    index = number - 1
    return Position(index // (y * x), index // x % y, index % x)

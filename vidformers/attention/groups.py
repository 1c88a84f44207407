"""The groups of the gathered form: the numbers of their patches, their masks, and how they share tiles on TPUs."""

import jax
import jax.numpy as jnp

from vidformers.attention.scheme import Scheme, numbered, position
from vidformers.parallel.activations import batch_shards, context_size
from vidformers.parallel.target import target_platform

_TILE_ROWS = 128  # queries and keys that fill the matrix unit of a TPU
_CLASS_TOKEN = -1  # the number of a class token; patches have positive numbers, and padding has 0


def group_numbers(scheme: Scheme, grid):
    """Returns the numbers of the patches in every group (1 g m), 0 at padding; see `scheme.numbered`."""
    return scheme.fold(numbered(grid), grid)[..., 0]


def group_shape(scheme: Scheme, grid) -> tuple[int, int]:
    """Returns the number of groups, and the number of patches in each, padding included."""
    shape = jax.eval_shape(lambda: group_numbers(scheme, grid)).shape
    return shape[1], shape[2]


def shift(scheme: Scheme, grid, x, part: int):
    """Returns q, k or v (b g m h e), by its index in this list, after `Scheme.shift_in_time`."""
    groups, patches = group_shape(scheme, grid)
    clips = x.reshape(-1, groups, *x.shape[2:])  # `tile` may have merged them
    return scheme.shift_in_time(clips, "QKV"[part], x.shape[2] - patches).reshape(x.shape)


def pad_groups(x, groups: int):
    """Returns x (b g ...) padded with zeros to this number of groups."""
    return jnp.pad(x, [(0, 0), (0, groups - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def group_mask(scheme: Scheme, grid, query, key, shapes, tiled: int = 1):
    """Returns the mask (1 g 1 q k) or (1 g 1 1 k) of the gathered form, or None if every query attends to every key.

    The mask is computed in the program from the numbers of the patches. No array of all pairs is built on the host.

    Args:
        query, key: numbers of the patches (1 g m) whose queries, and whose keys, a group has.
        shapes: shapes of queries and keys (b g m ...). Rows beyond the patches are class tokens.
        tiled: groups per tile, see `tile`.
    """
    t, y, x = grid
    hides_padding = key.shape[1] * key.shape[2] != t * y * x
    if scheme.whole and not hides_padding and tiled == 1:
        return None
    query, key = (_with_class_tokens(x, shape[2] // tiled) for x, shape in zip((query, key), shapes, strict=True))
    rows, groups = query.shape[2], shapes[0][1]
    # Where the groups of several clips lie on one axis, their numbers repeat.
    query, key = (jnp.tile(x, (1, groups * tiled // x.shape[1], 1)).reshape(1, groups, -1) for x in (query, key))
    if scheme.whole and not hides_padding:
        query, key = query[:, :1], key[:, :1]  # the mask of all tiles is the same
    mask = (key != 0)[:, :, None]
    if not scheme.whole:
        query, key = query[..., None], key[:, :, None]
        # A class token attends to the patches of its own group, and not to those of neighbouring groups.
        class_sees = (query == _CLASS_TOKEN) & (key == query).any(2, keepdims=True)
        # Class tokens have no position, so `visible` decides for patches alone.
        visible = scheme.visible(position(query, grid), position(key, grid)) & (query > 0)
        mask &= visible | class_sees | (key == _CLASS_TOKEN)
    if tiled > 1:
        group = jax.lax.iota(jnp.int32, rows * tiled) // rows
        mask &= group[:, None] == group
    return mask[:, :, None]


def _with_class_tokens(number, rows: int):
    """Returns numbers (1 g rows): those of the patches (1 g m), and class tokens."""
    return jnp.pad(number, ((0, 0), (0, 0), (0, rows - number.shape[2])), constant_values=_CLASS_TOKEN)


def groups_per_tile(groups) -> int:
    """Returns how many groups of `groups` (b g m d) share a tile, 1 for none.

    The matrix unit of a TPU multiplies 128 x 128 at a time. Attention in groups of 8 or 32 tokens would use a part of
    it, so several groups become one larger group under a block-diagonal mask. By the estimate of libtpu 0.0.42 for a
    v5e, time attention over 8 frames in groups of 16 places takes 1.3 ms instead of 2.0 (benchmarks/NOTES.md). CPUs
    would compute the hidden products. GPUs have not been tried.
    """
    rows, count, size = groups.shape[:3]
    if target_platform() != "tpu":
        return 1
    total = count // context_size() if context_size() > 1 else rows // _leading(rows) * count
    return max(n for n in range(1, max(1, _TILE_ROWS // size) + 1) if total % n == 0)


def tile(groups, may_share: bool = True):
    """Returns groups (b g m d) with several of them side by side in each group, for attention under a mask; how many.

    On TPUs the groups of all clips on a device then lie on the axis g, and the first axis counts devices: a group may
    share a tile with one of the next clip. Also without shared tiles, XLA chooses better layouts for three axes than
    for four: of (b t h q k) it stores t and k in tiles, and copies.
    """
    if target_platform() != "tpu":
        return groups, 1
    b, _, m = groups.shape[:3]
    count = groups_per_tile(groups) if may_share else 1
    return groups.reshape(_leading(b), -1, count * m, *groups.shape[3:]), count


def untile(x, shape):
    """Returns (b g m ...) of tiled x, the inverse of `tile` for groups of that shape (b g ...)."""
    return x.reshape(*shape[:2], -1, *x.shape[3:])


def _leading(b: int) -> int:
    """Returns the size of the first axis of tiles: one row per shard of the batch, so that tiles stay on a device."""
    return b if context_size() > 1 or b % batch_shards() else batch_shards()

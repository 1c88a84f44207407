"""Tokens, the random key of a layer, dropout, and the residual branch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.extend.random import threefry2x32_p

from vidformers.layers.windows import fold, unfold
from vidformers.parallel.target import target_platform


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of clips: the input and output of every sublayer.

    Attributes:
        patches: (b t n d), with n = y x patches of a frame, row by row. Rows and columns share one axis because TPUs
            store the last two axes of an array in tiles of 8 x 128: b and t can be merged without a copy, and a frame
            is padded once and not once per row.
        class_tokens: (b c d), c = 0, 1 per clip, or 1 per frame.
        grid: (t, y, x), static.
        window: (t, y, x) of the windows in whose order the patches are, or None; static.

    In joined tokens every class token is one more row of `patches`, the last of its group, and there are no others:
    (b t n+1 d) with one class token per frame, (b 1 t*n+1 d) with one per clip. Sublayers that treat patches and class
    tokens alike take them without moving a row. Their attribute `takes_joined` says which: 'frame', 'clip' or 'any'.

    In tokens `by_window` the patches are (b g m d), g windows of m patches (`vidformers/layers/windows.py`). Sublayers
    that treat each patch alike, and attention in windows, take them.

    In tokens `by_place` the patches are (b 1 (n t) d), the frames of a place side by side. On TPUs t then fills tiles,
    and convolutions over y and x move whole tiles.
    """

    patches: jax.Array
    class_tokens: jax.Array
    grid: tuple[int, int, int] = field(metadata=dict(static=True))
    window: tuple[int, int, int] | None = field(default=None, metadata=dict(static=True))

    def replace(self, **changes: Any) -> "Tokens":
        """Returns a copy with some attributes replaced."""
        return replace(self, **changes)

    @property
    def class_rows(self) -> int:
        """1 in joined tokens, 0 in others."""
        groups = self.patches.shape[1]
        return self.patches.shape[2] - math.prod(self.grid) // groups

    def join(self) -> "Tokens":
        """Returns joined tokens. There must be one class token per frame or one per clip."""
        b, groups, d = self.class_tokens.shape
        rows = self.patches.reshape(b, groups, -1, d), self.class_tokens.reshape(b, groups, 1, d)
        return self.replace(patches=jnp.concatenate(rows, axis=2), class_tokens=self.class_tokens[:, :0])

    def split(self) -> "Tokens":
        """Returns the tokens of which `join` made these."""
        b, _, _, d = self.patches.shape
        patches = self.patches[:, :, :-1].reshape(b, self.grid[0], -1, d)
        return self.replace(patches=patches, class_tokens=self.patches[:, :, -1])

    def by_place(self) -> "Tokens":
        """Returns tokens whose patches are (b 1 (n t) d)."""
        return self.replace(patches=rearrange(self.patches, "b t n d -> b 1 (n t) d"))

    def by_frame(self) -> "Tokens":
        """Returns the tokens of which `by_place` made these."""
        return self.replace(patches=rearrange(self.patches, "b 1 (n t) d -> b t n d", t=self.grid[0]))

    @property
    def is_by_place(self) -> bool:
        """Whether the patches are (b 1 (n t) d)."""
        return self.patches.shape[1] == 1

    def by_window(self, window: tuple[int, int, int]) -> "Tokens":
        """Returns tokens whose patches (b g m d) are in the order of these windows (t, y, x), which divide the grid."""
        # With the barriers here and in `maps`, XLA computes the norms of a stage in the order of windows alone.
        patches = jax.lax.optimization_barrier(fold(self.maps, window, (0, 0, 0)))
        return self.replace(patches=patches, window=window)

    @property
    def maps(self):
        """The patches on their grid, (b t y x d)."""
        if self.window is not None:
            return unfold(jax.lax.optimization_barrier(self.patches), self.grid, self.window, (0, 0, 0))
        return self.patches.reshape(self.patches.shape[0], *self.grid, self.patches.shape[-1])


def tokens_of_maps(maps, class_tokens) -> Tokens:
    """Returns the tokens of patches on a grid (b t y x d), and class tokens (b c d)."""
    b, t, y, x, d = maps.shape
    return Tokens(maps.reshape(b, t, y * x, d), class_tokens, (t, y, x))


class LayerRng(NamedTuple):
    """The random key of one layer and its stochastic depth rate, in a training step. Evaluation passes None instead.

    Attributes:
        key: random key.
        drop_path: probability that a clip skips a residual branch of this layer (stochastic depth).
    """

    key: jax.Array
    drop_path: jax.Array

    def split(self, count: int) -> "list[LayerRng]":
        """Returns `count` of them, with independent keys and the same rate."""
        return [LayerRng(key, self.drop_path) for key in jax.random.split(self.key, count)]


def split_rng(rng: LayerRng | None, count: int) -> Sequence[LayerRng | None]:
    """Returns `rng.split(count)`, or None for each of `count` modules."""
    return [None] * count if rng is None else rng.split(count)


def dropout(x, rate: float, rng: LayerRng | None, class_rng: LayerRng | None = None):
    """Returns x after inverted dropout, or x itself in evaluation. The arguments are those of `kept_elements`."""
    if rng is None or rate == 0.0:
        return x
    keep, share = kept_elements(x.shape, rate, rng, class_rng)
    return jnp.where(keep, x / share, 0).astype(x.dtype)


def kept_elements(shape: Sequence[int], rate: float, rng: LayerRng, class_rng: LayerRng | None = None):
    """Returns which elements of an array dropout keeps, as booleans, and the probability of each to be kept.

    Args:
        shape: of the array, of two axes or more.
        rate: the probability to be dropped, in multiples of 2^-16 on TPUs.
        rng: random numbers for this array.
        class_rng: those of the last row of every group, for joined tokens (b g n ...). Both parts then get the same
            random numbers as those of `Tokens.split`.
    """
    if class_rng is not None:
        b, groups, rows, *width = shape
        patches, share = kept_elements((b, groups, rows - 1, *width), rate, rng)
        class_tokens, _ = kept_elements((b, groups, *width), rate, class_rng)
        return jnp.concatenate([patches, class_tokens[:, :, None]], axis=2), share
    if target_platform() != "tpu":
        return jax.random.bernoulli(rng.key, 1.0 - rate, shape), 1.0 - rate
    # On TPUs random bits may take longer than the products of an MLP (benchmarks/NOTES.md). So 16 bits decide, and two
    # words have the bits of four parts of an axis. XLA stores the decisions, one byte each. If it joined the words
    # instead, it would store these, and compute them twice.
    axis, size = _axis_of_parts(shape)
    words = _random_words(rng.key, (*shape[:axis], size, *shape[axis + 1 :]))
    kept = round((1.0 - rate) * 2**16)
    parts = [half < kept for word in words for half in (word & 0xFFFF, word >> 16)]
    keep = jnp.concatenate(parts[: -(-shape[axis] // size)], axis=axis)
    return jax.lax.slice_in_dim(keep, 0, shape[axis], axis=axis), kept / 2**16


def _axis_of_parts(shape: Sequence[int]) -> tuple[int, int]:
    """Returns the axis of an array that is best taken in up to four parts of whole tiles, and the size of a part."""
    columns, rows = len(shape) - 1, len(shape) - 2
    size_of_columns, size_of_rows = (
        -(-shape[axis] // (4 * tile)) * tile for axis, tile in ((columns, 128), (rows, 32))
    )
    of_columns, of_rows = shape[columns] / size_of_columns, shape[rows] / size_of_rows  # up to 4, more is better
    return (columns, size_of_columns) if of_columns >= min(3, of_rows) else (rows, size_of_rows)


def _random_words(key, shape: Sequence[int]):
    """Returns two independent arrays of 32 random bits each.

    Threefry makes two words of one counter. `jax.random.bits` returns their exclusive or, for twice the time.
    """
    first, second = jax.random.key_data(key)[:2]
    row = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape[:-1]):
        row = row * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return threefry2x32_p.bind(first, second, row, jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1))


def add_branch(tokens: Tokens, branch, rate: float, rng: LayerRng | None) -> Tokens:
    """Returns tokens + dropout(branch). Stochastic depth skips the whole branch of a clip.

    Args:
        tokens: the input of the branch.
        branch: the updates (patches, class tokens), of the same shapes. None leaves the tokens unchanged, bit for bit.
        rate: rate of dropout.
        rng: None in evaluation.
    """
    pairs = list(zip((tokens.patches, tokens.class_tokens), branch, strict=True))
    if rng is None:
        patches, class_tokens = (x if dx is None else x + dx for x, dx in pairs)
        return tokens.replace(patches=patches, class_tokens=class_tokens)
    path, *drops = rng.split(3)
    keep = 1.0 - rng.drop_path
    path_scale = jax.random.bernoulli(path.key, keep, (tokens.patches.shape[0],)) / keep

    def add(x, dx, dropped):
        if dx is None:
            return x
        scale = path_scale.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropped(dx, rate) * scale

    patches = add(*pairs[0], partial(dropout, rng=drops[0], class_rng=drops[1] if tokens.class_rows else None))
    class_tokens = add(*pairs[1], partial(dropout, rng=drops[1]))
    return tokens.replace(patches=patches, class_tokens=class_tokens)

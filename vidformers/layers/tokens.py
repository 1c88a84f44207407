"""Tokens, the random key of a layer, dropout, and the residual branch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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

    In joined tokens the class token of each frame is one more row of `patches` (b t n+1 d), the last, and there are no
    others. Sublayers that treat patches and class tokens alike take them without moving a row. Those that do not, lack
    the attribute `takes_joined`.
    """

    patches: jax.Array
    class_tokens: jax.Array
    grid: tuple[int, int, int] = field(metadata=dict(static=True))

    def replace(self, **changes: Any) -> "Tokens":
        """Returns a copy with some attributes replaced."""
        return replace(self, **changes)

    @property
    def class_rows(self) -> int:
        """1 in joined tokens, 0 in others."""
        return self.patches.shape[2] - math.prod(self.grid[1:])

    def join(self) -> "Tokens":
        """Returns joined tokens. There must be one class token per frame."""
        b, t, _, d = self.patches.shape
        joined = jnp.concatenate([self.patches, self.class_tokens.reshape(b, t, 1, d)], axis=2)
        return self.replace(patches=joined, class_tokens=self.class_tokens[:, :0])

    def split(self) -> "Tokens":
        """Returns the tokens of which `join` made these."""
        return self.replace(patches=self.patches[:, :, :-1], class_tokens=self.patches[:, :, -1])

    @property
    def maps(self):
        """The patches on their grid, (b t y x d)."""
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


def dropout(x, rate: float, rng: LayerRng | None):
    """Returns x after inverted dropout, or x itself in evaluation."""
    if rng is None or rate == 0.0:
        return x
    if target_platform() != "tpu":
        keep = jax.random.bernoulli(rng.key, 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
    # XLA would compute the random bits twice, in the forward and in the backward pass, which takes longer than the
    # products of an MLP. Here 16 bits decide on an element, and a barrier keeps them (benchmarks/NOTES.md).
    # The halves of the words lie side by side on an axis on which they are whole tiles, if there is one.
    axis = x.ndim - 1
    if x.ndim > 2 and x.shape[-1] % 256 and x.shape[-2] % 16 == 0:
        axis -= 1
    shape = (*x.shape[:axis], -(-x.shape[axis] // 2), *x.shape[axis + 1 :])
    words = jax.lax.optimization_barrier(jax.random.bits(rng.key, shape, jnp.uint32))
    bits = jnp.concatenate([words & 0xFFFF, words >> 16], axis=axis)
    bits = jax.lax.slice_in_dim(bits, 0, x.shape[axis], axis=axis)
    kept = round((1.0 - rate) * 2**16)
    return jnp.where(bits < kept, x * (2**16 / kept), 0).astype(x.dtype)


def dropout_of_patches(x, rate: float, rngs: Sequence[LayerRng | None], class_rows: int):
    """Returns dropout of patches (b t n ...), or of joined tokens with the same random numbers as of `split` tokens.

    Args:
        rngs: that of the patches and that of the class tokens.
        class_rows: that of the tokens.
    """
    if rngs[0] is None or rate == 0.0 or not class_rows:
        return dropout(x, rate, rngs[0])
    patches, class_tokens = dropout(x[:, :, :-1], rate, rngs[0]), dropout(x[:, :, -1], rate, rngs[1])
    return jnp.concatenate([patches, class_tokens[:, :, None]], axis=2)


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
        return Tokens(patches, class_tokens, tokens.grid)
    path, *drops = rng.split(3)
    keep = 1.0 - rng.drop_path
    path_scale = jax.random.bernoulli(path.key, keep, (tokens.patches.shape[0],)) / keep

    def add(x, dx, dropped):
        if dx is None:
            return x
        scale = path_scale.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropped(dx, rate) * scale

    patches = add(*pairs[0], partial(dropout_of_patches, rngs=drops, class_rows=tokens.class_rows))
    class_tokens = add(*pairs[1], partial(dropout, rng=drops[1]))
    return Tokens(patches, class_tokens, tokens.grid)

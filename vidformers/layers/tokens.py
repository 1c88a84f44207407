"""Tokens, the random key of a layer, dropout, and the residual branch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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
    """

    patches: jax.Array
    class_tokens: jax.Array
    grid: tuple[int, int, int] = field(metadata=dict(static=True))

    def replace(self, **changes: Any) -> "Tokens":
        """Returns a copy with some attributes replaced."""
        return replace(self, **changes)

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
    keep = jax.random.bernoulli(rng.key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


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

    def add(x, dx, drop):
        if dx is None:
            return x
        scale = path_scale.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropout(dx, rate, drop) * scale

    patches, class_tokens = (add(x, dx, drop) for (x, dx), drop in zip(pairs, drops, strict=True))
    return Tokens(patches, class_tokens, tokens.grid)

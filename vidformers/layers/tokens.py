"""Tokens, the random key of a layer, dropout, and the residual branch."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
    """Patch tokens (b t y x d), never flattened between modules, and class tokens (b c d)."""

    patches: jax.Array
    class_tokens: jax.Array


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
        branch: the updates (patches, class tokens). None leaves the tokens unchanged, bit for bit.
        rate: rate of dropout.
        rng: None in evaluation.
    """
    if rng is None:
        return Tokens(*(x if dx is None else x + dx for x, dx in zip(tokens, branch, strict=True)))
    path, *drops = rng.split(3)
    keep = 1.0 - rng.drop_path
    path_scale = jax.random.bernoulli(path.key, keep, (tokens.patches.shape[0],)) / keep

    def add(x, dx, drop):
        if dx is None:
            return x
        scale = path_scale.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropout(dx, rate, drop) * scale

    return Tokens(*map(add, tokens, branch, drops))

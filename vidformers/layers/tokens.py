"""Tokens, the noise of a training pass, dropout, and the residual branch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
    """Patch tokens (b t y x d), never flattened between modules, and the class tokens (b c d) beside them."""

    patches: jax.Array
    class_tokens: jax.Array


class Noise(NamedTuple):
    """What is random in a training pass through one layer; None in its place means evaluation."""

    key: jax.Array
    drop_path: jax.Array  # chance that a clip skips a residual branch of this layer (stochastic depth)

    def split(self, count: int) -> "list[Noise]":
        return [Noise(key, self.drop_path) for key in jax.random.split(self.key, count)]


def dropout(x, rate: float, noise: Noise | None):
    """Inverted dropout; the identity in evaluation."""
    if noise is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(noise.key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def add_branch(tokens: Tokens, patches, classes, rate: float, noise: Noise | None) -> Tokens:
    """The residual: tokens + dropout(branch), the branch of a clip skipped as a whole by stochastic depth.

    A branch given as None leaves its tokens as they were, bit for bit.
    """
    if noise is None:
        return Tokens(*(x if dx is None else x + dx for x, dx in zip(tokens, (patches, classes), strict=True)))
    path, *drops = noise.split(3)
    keep = 1.0 - noise.drop_path
    kept = jax.random.bernoulli(path.key, keep, (tokens.patches.shape[0],)) / keep

    def add(x, dx, drop):
        if dx is None:
            return x
        scale = kept.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropout(dx, rate, drop) * scale

    return Tokens(*map(add, tokens, (patches, classes), drops))

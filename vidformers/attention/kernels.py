"""How strongly a query reads a key: softmax, or products of ReLU features in time linear in the number of tokens.

Arrays have their heads first: q (... h q e), k and v (... h k e). A kernel takes the queries and one or more sources of
keys and normalises over all of them together; its result is (... h q e).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

KERNELS = ("softmax", "relu", "cosine")
_MIN_DIVISOR = 1e-6  # divisor where no key is read: all ReLU features of a row may vanish


class Source(NamedTuple):
    """Keys and values that a query chooses from.

    `mask` (... q k) or, for all queries alike, (... 1 k); False hides a key. `bias` (... h q k) is added to the scores.
    `angle` (... 1 n), radians, one a token of a source that holds the queries' own tokens: key j counts for query i by
    the cosine of the angle between them.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None
    angle: jax.Array | None = None


def softmax(q, sources):
    """Scores scaled by 1/sqrt(e); softmax is taken in float32, or wider where q is.

    What is read is divided by the sum of the weights, since there are more of these.
    """
    scores = _scores(q, sources)
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores]))
    weights = [jnp.exp(score - top) for score in scores]
    return (weighted_values(weights, q, sources) / sum(part.sum(-1, keepdims=True) for part in weights)).astype(q.dtype)


def softmax_with_dropout(q, sources, drop):
    """`softmax` with weights that `drop` thins out, those of all sources at once."""
    return weighted_values(softmax_weights(q, sources, drop), q, sources)


def softmax_weights(q, sources, drop=lambda weights: weights):
    """The weights of `softmax`, (... h q k) of each source, which `drop` thins out."""
    scores = _scores(q, sources)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    sizes = [score.shape[-1] for score in scores]
    return jnp.split(drop(weights), [sum(sizes[:i]) for i in range(1, len(sizes))], axis=-1)


def _scores(q, sources) -> list:
    """(... h q k) of each source, -inf where its mask hides a key."""
    q = q * q.shape[-1] ** -0.5
    scores = []
    for source in sources:
        score = jnp.einsum("...qe,...ke->...qk", q, source.k)
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        if source.bias is not None:
            score += source.bias
        scores.append(score if source.mask is None else jnp.where(source.mask, score, -jnp.inf))
    return scores


def weighted_values(weights, q, sources):
    """The values of each source by its weights (... h q k), summed up in the type of q: (... h q e)."""
    return sum(
        jnp.einsum("...qk,...ke->...qe", part.astype(q.dtype), source.v)
        for part, source in zip(weights, sources, strict=True)
    )


def linear_attention(q, sources):
    """ReLU(q) ReLU(k) as similarity, by the cosine of the angles where a source has them (HaViT sec. 3.2; cosFormer).

    Keys and values are summed up first, so that time and memory grow with q + k and not with q k. A mask must hide a
    key from all queries or from none.
    """
    above = below = 0
    for source in sources:
        features, keys = _features(q, source.angle), _features(source.k, source.angle)
        if source.mask is not None:
            keys = jnp.where(jnp.swapaxes(source.mask, -1, -2), keys, 0)
        wide = dict(preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        summed = jnp.einsum("...kf,...ke->...fe", keys, source.v, **wide)
        above += jnp.einsum("...qf,...fe->...qe", features, summed, **wide)
        below += jnp.einsum("...qf,...f->...q", features, keys.sum(-2, dtype=summed.dtype), **wide)
    return (above / jnp.maximum(below, _MIN_DIVISOR)[..., None]).astype(q.dtype)


def quadratic_attention(q, sources):
    """What `linear` computes, from the matrix of weights and under any mask: its definition."""
    return weighted_values(quadratic_weights(q, sources), q, sources)


def quadratic_weights(q, sources):
    """The weights of `quadratic`, (... h q k) of each source."""
    parts = []
    for source in sources:
        weights = jnp.einsum("...qe,...ke->...qk", jax.nn.relu(q), jax.nn.relu(source.k))
        if source.angle is not None:
            weights *= jnp.cos(source.angle[..., :, None] - source.angle[..., None, :])
        parts.append(weights if source.mask is None else jnp.where(source.mask, weights, 0))
    below = jnp.maximum(sum(weights.sum(-1, keepdims=True) for weights in parts), _MIN_DIVISOR)
    return [weights / below for weights in parts]


def get_kernel(kernel, masked: bool):
    """The kernel of that name, one of `KERNELS`; `masked` asks for the form that takes any mask. A function is one
    already."""
    if callable(kernel):
        return kernel
    return softmax if kernel == "softmax" else quadratic_attention if masked else linear_attention


def _features(x, angle):
    x = jax.nn.relu(x)
    if angle is None:
        return x
    angle = angle[..., None].astype(x.dtype)
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)

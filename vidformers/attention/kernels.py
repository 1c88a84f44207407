"""Attention kernels: softmax, or products of ReLU features in time linear in the number of tokens.

A kernel takes queries q (... h q e) and one or more sources with keys and values (... h k e). It normalises the weights
over the keys of all sources together and returns (... h q e).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

KERNELS = ("softmax", "relu", "cosine")
_MIN_DIVISOR = 1e-6  # all ReLU features of a query may vanish, and then it reads no key


class KeyValues(NamedTuple):
    """Keys and values that queries read.

    Attributes:
        k: keys (... h k e).
        v: values (... h k e).
        mask: (... q k), or (... 1 k) for all queries. False hides a key.
        bias: (... h q k), added to the scores.
        angle: (... 1 n) in radians, for a source whose n tokens are also the queries. The weight of key j for query i
            is multiplied by the cosine of angle i minus angle j.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None
    angle: jax.Array | None = None


def softmax(q, sources):
    """Returns softmax attention with scores scaled by 1/sqrt(e). Softmax is computed in float32, or in a wider q.dtype.

    The weighted sum of the values is divided by the sum of the weights, because it has fewer elements than the weights.
    """
    scores = _scores(q, sources)
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores]))
    weights = [jnp.exp(score - top) for score in scores]
    dividend = weighted_values(weights, q, sources)
    return (dividend / sum(source_weights.sum(-1, keepdims=True) for source_weights in weights)).astype(q.dtype)


def softmax_with_dropout(q, sources, drop):
    """Returns what `softmax` returns, with dropout of the weights by `drop`, on all sources at once."""
    return weighted_values(softmax_weights(q, sources, drop), q, sources)


def softmax_weights(q, sources, drop=lambda weights: weights):
    """Returns the weights of `softmax`, (... h q k) of each source, after dropout by `drop`."""
    scores = _scores(q, sources)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    sizes = [score.shape[-1] for score in scores]
    return jnp.split(drop(weights), [sum(sizes[:i]) for i in range(1, len(sizes))], axis=-1)


def _scores(q, sources) -> list:
    """Returns the scores (... h q k) of each source, -inf where its mask hides a key."""
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
    """Returns the weighted sum (... h q e) of the values of all sources, in q.dtype. `weights` are (... h q k) each."""
    return sum(
        jnp.einsum("...qk,...ke->...qe", source_weights.astype(q.dtype), source.v)
        for source_weights, source in zip(weights, sources, strict=True)
    )


def linear_attention(q, sources):
    """Returns attention with weights ReLU(q) ReLU(k), times the cosine of angles if a source has them.

    HaViT sec. 3.2; cosFormer. The products of keys and values are summed first, so time and memory grow with q + k
    instead of q k. A mask must hide a key from all queries or from none.
    """
    dividend: jax.Array | int = 0
    divisor: jax.Array | int = 0
    for source in sources:
        features, keys = _features(q, source.angle), _features(source.k, source.angle)
        if source.mask is not None:
            keys = jnp.where(jnp.swapaxes(source.mask, -1, -2), keys, 0)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        summed = einsum("...kf,...ke->...fe", keys, source.v)
        dividend += einsum("...qf,...fe->...qe", features, summed)
        divisor += einsum("...qf,...f->...q", features, keys.sum(-2, dtype=summed.dtype))
    return (dividend / jnp.maximum(divisor, _MIN_DIVISOR)[..., None]).astype(q.dtype)


def quadratic_attention(q, sources):
    """Returns what `linear_attention` returns, from the matrix of weights and under any mask: its definition."""
    return weighted_values(quadratic_weights(q, sources), q, sources)


def quadratic_weights(q, sources):
    """Returns the weights of `quadratic_attention`, (... h q k) of each source."""
    products = []
    for source in sources:
        product = jnp.einsum("...qe,...ke->...qk", jax.nn.relu(q), jax.nn.relu(source.k))
        if source.angle is not None:
            product *= jnp.cos(source.angle[..., :, None] - source.angle[..., None, :])
        products.append(product if source.mask is None else jnp.where(source.mask, product, 0))
    divisor = jnp.maximum(sum(product.sum(-1, keepdims=True) for product in products), _MIN_DIVISOR)
    return [product / divisor for product in products]


def get_kernel(kernel, masked: bool):
    """Returns the kernel with a name of `KERNELS`. A function is returned as it is.

    Args:
        kernel: name or function.
        masked: returns the quadratic form of a linear kernel, which supports any mask.
    """
    if callable(kernel):
        return kernel
    return softmax if kernel == "softmax" else quadratic_attention if masked else linear_attention


def _features(x, angle):
    """Returns features (... f) of which products are ReLU products times the cosine of the difference of angles."""
    x = jax.nn.relu(x)
    if angle is None:
        return x
    angle = angle[..., None].astype(x.dtype)
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)

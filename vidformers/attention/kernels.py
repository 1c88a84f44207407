"""Attention kernels: softmax, or products of ReLU features in time linear in the number of tokens.

A kernel takes queries q (... h q e) and `key_values`, a list of `KeyValues`: of the clip, of a dictionary, or of both.
It normalises the weights over the keys of the whole list and returns (... h q e).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

KERNELS = ("softmax", "relu", "cosine")
_MIN_DENOMINATOR = 1e-6  # all ReLU features of a query may be zero; the output is then zero


class KeyValues(NamedTuple):
    """Keys and values.

    Attributes:
        k: keys (... h k e).
        v: values (... h k e).
        mask: (... q k), or (... 1 k) for all queries. False hides a key. Every query must have a key that is not
            hidden in one of the `KeyValues`; otherwise softmax gives NaN.
        bias: (... h q k), added to the scores.
        angle: (... 1 n) in radians, only for self-attention, where queries and keys are the same n tokens. The weight
            of key j for query i is multiplied by the cosine of angle i minus angle j.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None
    angle: jax.Array | None = None


def softmax(q, key_values):
    """Returns softmax attention with scores scaled by 1/sqrt(e). Softmax is computed in float32, or in a wider q.dtype.

    Normalises after the product with V, because the output has fewer elements than the weights. In bfloat16 the product
    uses weights that are rounded to bfloat16, and the denominator sums the float32 weights.
    """
    scores = _scores(q, key_values)
    max_score = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [score.max(-1, keepdims=True) for score in scores]))
    weights = [jnp.exp(score - max_score) for score in scores]
    numerator = weighted_values(weights, q, key_values)
    denominator = sum(weight.sum(-1, keepdims=True) for weight in weights)
    return (numerator / denominator).astype(q.dtype)


def softmax_with_dropout(q, key_values, dropout_fn):
    """Returns `softmax` with `dropout_fn` applied to the weights of the whole list together."""
    return weighted_values(softmax_weights(q, key_values, dropout_fn), q, key_values)


def softmax_weights(q, key_values, dropout_fn=lambda weights: weights):
    """Returns the weights of `softmax`, (... h q k) for each item of `key_values`, after `dropout_fn`."""
    scores = _scores(q, key_values)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    sizes = [score.shape[-1] for score in scores]
    return jnp.split(dropout_fn(weights), [sum(sizes[:i]) for i in range(1, len(sizes))], axis=-1)


def _scores(q, key_values) -> list:
    """Returns the scores (... h q k) for each item of `key_values`, -inf where its mask hides a key."""
    q = q * q.shape[-1] ** -0.5
    scores = []
    for item in key_values:
        score = jnp.einsum("...qe,...ke->...qk", q, item.k)
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        if item.bias is not None:
            score += item.bias
        scores.append(score if item.mask is None else jnp.where(item.mask, score, -jnp.inf))
    return scores


def weighted_values(weights, q, key_values):
    """Returns the sum (... h q e) over the list of weights (... h q k), rounded to q.dtype, times values."""
    return sum(
        jnp.einsum("...qk,...ke->...qe", weight.astype(q.dtype), item.v)
        for weight, item in zip(weights, key_values, strict=True)
    )


def linear_attention(q, key_values):
    """Returns attention with weights ReLU(q).ReLU(k), times the cosine of angles where they are given.

    Sums the products of keys and values first, so the cost is O(q + k), not O(q k), in the numbers of queries and keys.
    A mask must hide a key from all queries or from none. HaViT sec. 3.2; cosFormer.
    """
    numerator: jax.Array | int = 0
    denominator: jax.Array | int = 0
    for item in key_values:
        query_features, key_features = _features(q, item.angle), _features(item.k, item.angle)
        if item.mask is not None:
            key_features = jnp.where(jnp.swapaxes(item.mask, -1, -2), key_features, 0)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        products = einsum("...kf,...ke->...fe", key_features, item.v)
        numerator += einsum("...qf,...fe->...qe", query_features, products)
        denominator += einsum("...qf,...f->...q", query_features, key_features.sum(-2, dtype=products.dtype))
    return (numerator / jnp.maximum(denominator, _MIN_DENOMINATOR)[..., None]).astype(q.dtype)


def quadratic_attention(q, key_values):
    """Returns the same as `linear_attention`, but materialises the weights and supports any mask: its reference."""
    return weighted_values(quadratic_weights(q, key_values), q, key_values)


def quadratic_weights(q, key_values):
    """Returns the weights of `quadratic_attention`, (... h q k) for each item of `key_values`."""
    products = []
    for item in key_values:
        product = jnp.einsum("...qe,...ke->...qk", jax.nn.relu(q), jax.nn.relu(item.k))
        if item.angle is not None:
            product *= jnp.cos(item.angle[..., :, None] - item.angle[..., None, :])
        products.append(product if item.mask is None else jnp.where(item.mask, product, 0))
    denominator = jnp.maximum(sum(product.sum(-1, keepdims=True) for product in products), _MIN_DENOMINATOR)
    return [product / denominator for product in products]


def get_kernel(kernel, masked: bool):
    """Returns the kernel of a name.

    Args:
        kernel: one of `KERNELS`. A callable is returned unchanged.
        masked: returns the quadratic form of a linear kernel, which supports any mask.
    """
    if callable(kernel):
        return kernel
    return softmax if kernel == "softmax" else quadratic_attention if masked else linear_attention


def _features(x, angle):
    """Returns features phi (... f) with phi(q).phi(k) = ReLU(q).ReLU(k), times cos(angle_q - angle_k) if given."""
    x = jax.nn.relu(x)
    if angle is None:
        return x
    angle = angle[..., None].astype(x.dtype)
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)

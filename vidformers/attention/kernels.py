"""Attention kernels: softmax, or products of ReLU features in time linear in the number of tokens.

A kernel takes queries q (... q h e) and `key_values`, a list of `KeyValues`: of the clip, of a dictionary, or of both.
It normalises the weights over the keys of the whole list and returns (... q h e).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vidformers.parallel.target import TILE_ROWS, target_platform

KERNELS = ("softmax", "relu", "cosine")
_MIN_DENOMINATOR = 1e-6  # all ReLU features of a query may be zero; the output is then zero
# The score of a hidden key. It is finite, so that a query whose keys are all hidden, which only padding is, gets finite
# weights and gradients.
_HIDDEN = -1e30


class KeyValues(NamedTuple):
    """Keys and values.

    Attributes:
        k: keys (... k h e).
        v: values (... k h e).
        mask: (... h q k), or with 1 in place of h or q. False hides a key.
        bias: (... h q k), added to the scores.
        angle: (... n) in radians, only for self-attention, where queries and keys are the same n tokens. The weight of
            key j for query i is multiplied by the cosine of angle i minus angle j.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None
    angle: jax.Array | None = None


def query_keys(q, k, dtype=None):
    """Returns the products (... h q k) of queries (... q h e) and keys (... k h e).

    CPUs multiply batches of matrices 1.5 times as fast if the heads are moved before the tokens first. TPUs lose 5% of
    a training step by it (benchmarks/NOTES.md).
    """
    if target_platform() == "cpu":
        q, k = jnp.swapaxes(q, -2, -3), jnp.swapaxes(k, -2, -3)
        return jnp.einsum("...qe,...ke->...qk", q, k, preferred_element_type=dtype)
    return jnp.einsum("...qhe,...khe->...hqk", q, k, preferred_element_type=dtype)


def weights_values(weights, v, dtype=None):
    """Returns the products (... q h e) of weights (... h q k) and values (... k h e)."""
    if target_platform() == "cpu":
        v = jnp.swapaxes(v, -2, -3)
        return jnp.swapaxes(jnp.einsum("...qk,...ke->...qe", weights, v, preferred_element_type=dtype), -2, -3)
    return jnp.einsum("...hqk,...khe->...qhe", weights, v, preferred_element_type=dtype)


def softmax(q, key_values, *, rematerialise: bool = False):
    """Returns softmax attention with scores scaled by 1/sqrt(e). Softmax is computed in float32, or in a wider q.dtype.

    In bfloat16 the products use weights that are rounded to bfloat16, and these are what is summed to normalise them.

    The backward pass is written by hand. It keeps the weights once, in q.dtype and not yet normalised, and computes the
    row sums of the gradient of softmax from the output and its cotangent, which have fewer elements than weights and
    their cotangents. With `rematerialise` it keeps one number per row instead, and computes the weights again from q
    and k.
    """
    return _softmax(q, tuple(key_values), rematerialise)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _softmax(q, key_values, rematerialise):
    return _softmax_forward(q, key_values, rematerialise)[0]


def _softmax_forward(q, key_values, rematerialise):
    pairs, wide = _Pairs.best(q), jnp.promote_types(q.dtype, jnp.float32)
    scores = pairs.scores(q, key_values)
    row_max = functools.reduce(jnp.maximum, [score.max(pairs.key_axis, keepdims=True) for score in scores])
    if pairs.keys_first and len(scores) > 1:
        # The maximum over several items is known after all products. XLA would store the scores until then, in float32.
        # Computing them again takes less time. The barrier keeps XLA from seeing that they are the same.
        scores = pairs.scores(jax.lax.optimization_barrier(q), key_values)
    weights = [jnp.exp(score - row_max).astype(q.dtype) for score in scores]
    row_sum = functools.reduce(jnp.add, [weight.sum(pairs.key_axis, dtype=wide, keepdims=True) for weight in weights])
    out = sum(pairs.weights_values(weight, item.v, wide) for weight, item in zip(weights, key_values, strict=True))
    out = (out / pairs.by_query(row_sum)).astype(q.dtype)
    if out.dtype != wide:
        # XLA may skip a rounding, and would keep the output for the backward pass in float32, which is twice the bytes.
        out = jax.lax.optimization_barrier(out)
    if rematerialise:
        return out, (q, key_values, out, row_max + jnp.log(row_sum), None)
    return out, (q, key_values, out, weights, row_sum)


def _softmax_backward(rematerialise, residuals, cotangent):
    q, key_values, out, weights, row_sum = residuals
    pairs, scale, wide = _Pairs.best(q), q.shape[-1] ** -0.5, jnp.promote_types(q.dtype, jnp.float32)
    cotangent = cotangent.astype(wide)
    if rematerialise:
        weights = [jnp.exp(score - weights) for score in pairs.scores(q, key_values)]
    else:  # dividing the cotangent divides all that follows, so the weights are never divided
        cotangent /= pairs.by_query(row_sum)
    cotangent = cotangent.astype(q.dtype)
    row_sum = pairs.of_queries(jnp.einsum("...qhe,...qhe->...hq", cotangent, out, preferred_element_type=wide))
    dq, gradients = jnp.zeros(q.shape, wide), []
    for weight, item in zip(weights, key_values, strict=True):
        values = functools.partial(pairs.weights_values, weight.astype(q.dtype))
        dv = jax.vjp(values, item.v)[1](cotangent)[0]
        score = weight.astype(wide) * (pairs.query_keys(cotangent, item.v, wide) - row_sum)
        bias = None if item.bias is None else _sum_to(pairs.order(score), item.bias)
        item_dq, dk = jax.vjp(pairs.query_keys, q * scale, item.k)[1](score.astype(q.dtype))
        dq += item_dq
        gradients.append(KeyValues(dk, dv, None, bias))
    return (dq * scale).astype(q.dtype), tuple(gradients)


_softmax.defvjp(_softmax_forward, _softmax_backward)


class _Pairs(NamedTuple):
    """The order of scores and weights in memory: (... h q k), or (... h k q) with `keys_first`.

    TPUs store the last two axes in tiles. With the queries last, maxima and sums over the keys of a query add whole
    tiles. XLA then computes the exponential and the sum in the same pass as the product of q and k, so that no score
    is stored. With the keys last it stores the scores in float32 and reads them twice (benchmarks/NOTES.md).
    """

    keys_first: bool

    @classmethod
    def best(cls, q) -> "_Pairs":
        """Returns the order for queries (... q h e). A few queries would leave most of a tile empty."""
        return cls(target_platform() == "tpu" and q.shape[-3] >= TILE_ROWS)

    @property
    def key_axis(self) -> int:
        return -2 if self.keys_first else -1

    def order(self, x):
        """Returns x (... h q k) in this order, or x in this order as (... h q k)."""
        return jnp.swapaxes(x, -1, -2) if self.keys_first else x

    def by_query(self, x):
        """Returns (... q h 1) of one number per query, in the order of the scores."""
        return jnp.swapaxes(self.order(x), -2, -3)

    def of_queries(self, x):
        """Returns x (... h q) as one number per query, in the order of the scores."""
        return jnp.expand_dims(x, self.key_axis)

    def query_keys(self, q, k, dtype=None):
        """Returns `query_keys` in this order."""
        if self.keys_first:
            return jnp.einsum("...qhe,...khe->...hkq", q, k, preferred_element_type=dtype)
        return query_keys(q, k, dtype)

    def weights_values(self, weights, v, dtype=None):
        """Returns `weights_values` of weights in this order."""
        if self.keys_first:
            return jnp.einsum("...hkq,...khe->...qhe", weights, v, preferred_element_type=dtype)
        return weights_values(weights, v, dtype)

    def scores(self, q, key_values) -> list:
        """Returns the scores for each item of `key_values`, `_HIDDEN` where its mask hides a key."""
        q = q * q.shape[-1] ** -0.5
        scores = []
        for item in key_values:
            score = self.query_keys(q, item.k, jnp.promote_types(q.dtype, jnp.float32))
            if item.bias is not None:
                score += self.order(item.bias)
            scores.append(score if item.mask is None else jnp.where(self.order(item.mask), score, _HIDDEN))
        return scores


def _sum_to(x, like):
    """Returns the sum of x over the axes along which `like` was broadcast to its shape."""
    return jax.vjp(lambda small: jnp.broadcast_to(small, x.shape), like.astype(x.dtype))[1](x)[0].astype(like.dtype)


def softmax_with_dropout(q, key_values, dropout_fn):
    """Returns `softmax` with `dropout_fn` applied to the weights of the whole list together."""
    return weighted_values(softmax_weights(q, key_values, dropout_fn), q, key_values)


def softmax_weights(q, key_values, dropout_fn=lambda weights: weights):
    """Returns the weights of `softmax`, (... h q k) for each item of `key_values`, after `dropout_fn`."""
    scores = _Pairs(keys_first=False).scores(q, key_values)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    sizes = [score.shape[-1] for score in scores]
    return jnp.split(dropout_fn(weights), [sum(sizes[:i]) for i in range(1, len(sizes))], axis=-1)


def weighted_values(weights, q, key_values):
    """Returns the sum (... q h e) over the list of weights (... h q k), rounded to q.dtype, times values."""
    return sum(weights_values(weight.astype(q.dtype), item.v) for weight, item in zip(weights, key_values, strict=True))


def linear_attention(q, key_values):
    """Returns attention with weights ReLU(q).ReLU(k), times the cosine of angles where they are given.

    Sums the products of keys and values first, so the cost is O(q + k), not O(q k), in the numbers of queries and keys.
    A mask must hide a key from all queries or from none. HaViT sec. 3.2; cosFormer.
    """
    numerator: jax.Array | int = 0
    denominator: jax.Array | int = 0
    for item in key_values:
        query_features, key_features = _features(q, item.angle), _features(item.k, item.angle)
        if item.mask is not None:  # (... h 1 k) -> (... k h 1)
            mask = item.mask.reshape((1,) * (3 - item.mask.ndim) + item.mask.shape)
            key_features = jnp.where(jnp.moveaxis(mask, -1, -3), key_features, 0)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        products = einsum("...khf,...khe->...hfe", key_features, item.v)
        numerator += einsum("...qhf,...hfe->...qhe", query_features, products)
        denominator += einsum("...qhf,...hf->...qh", query_features, key_features.sum(-3, dtype=products.dtype))
    return (numerator / jnp.maximum(denominator, _MIN_DENOMINATOR)[..., None]).astype(q.dtype)


def quadratic_attention(q, key_values):
    """Returns the same as `linear_attention`, but materialises the weights and supports any mask: its reference."""
    return weighted_values(quadratic_weights(q, key_values), q, key_values)


def quadratic_weights(q, key_values):
    """Returns the weights of `quadratic_attention`, (... h q k) for each item of `key_values`."""
    products = []
    for item in key_values:
        product = query_keys(jax.nn.relu(q), jax.nn.relu(item.k))
        if item.angle is not None:
            product *= jnp.cos(item.angle[..., None, :, None] - item.angle[..., None, None, :])
        products.append(product if item.mask is None else jnp.where(item.mask, product, 0))
    denominator = jnp.maximum(sum(product.sum(-1, keepdims=True) for product in products), _MIN_DENOMINATOR)
    return [product / denominator for product in products]


def _features(x, angle):
    """Returns features phi (... n h f) with phi(q).phi(k) = ReLU(q).ReLU(k), times cos(angle_q - angle_k) if given."""
    x = jax.nn.relu(x)
    if angle is None:
        return x
    angle = angle[..., None, None].astype(x.dtype)
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], axis=-1)

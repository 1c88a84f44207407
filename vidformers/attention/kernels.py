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
    their cotangents. With `rematerialise` it computes the weights again from q and k. On CPUs and GPUs it keeps one
    number per row for this.
    """
    return _softmax(_scaled(q), tuple(_items(q, key_values)), rematerialise)


def side_by_side(q, key_values) -> KeyValues:
    """Returns one item with the keys of all `key_values`, copied to all groups of the queries (... q h e)."""
    lead, wide = q.shape[:-3], jnp.promote_types(q.dtype, jnp.float32)
    sizes = [item.k.shape[-3] for item in key_values]

    def copied(x):
        # In float32, because the gradient of keys that groups share is a sum over all groups.
        return x if x.shape[:-3] == lead else jnp.broadcast_to(x.astype(wide), (*lead, *x.shape[-3:])).astype(x.dtype)

    def over_keys(arrays, fill):
        if all(x is None for x in arrays):
            return None
        arrays = [jnp.full((1, 1, 1), fill) if x is None else jnp.asarray(x) for x in arrays]
        shape = jnp.broadcast_shapes(*(x.shape[:-1] for x in arrays))
        return jnp.concatenate(
            [jnp.broadcast_to(x, (*shape, size)) for x, size in zip(arrays, sizes, strict=True)], axis=-1
        )

    k, v = (jnp.concatenate([copied(getattr(item, name)) for item in key_values], axis=-3) for name in "kv")
    mask, bias = ([getattr(item, name) for item in key_values] for name in ("mask", "bias"))
    return KeyValues(k, v, over_keys(mask, True), over_keys(bias, 0.0))


def _items(q, key_values) -> list:
    """Returns `key_values`, or one item with all keys where copying the keys costs less than scores of several items.

    TPUs compute the scores of several items twice (see `_unnormalised`). By the estimates of their compiler, one item
    is faster for windows, which have a bias, and for few keys (benchmarks/NOTES.md).
    """
    if target_platform() != "tpu" or len(key_values) == 1:
        return list(key_values)
    has_bias = any(item.bias is not None for item in key_values)
    has_mask = any(item.mask is not None for item in key_values)
    has_few_keys = max(TILE_ROWS, 2 * sum(item.k.shape[-3] for item in key_values)) <= q.shape[-3]
    return [side_by_side(q, key_values)] if has_bias or has_few_keys and not has_mask else list(key_values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _softmax(q, key_values, rematerialise):
    return _softmax_forward(q, key_values, rematerialise)[0]


def _softmax_forward(q, key_values, rematerialise):
    weights, row_max, row_sum = _unnormalised(q, key_values)
    orders, wide = _orders(q, key_values), row_sum.dtype
    out = sum(o.weights_values(w, item.v, wide) for o, w, item in zip(orders, weights, key_values, strict=True))
    out = (out / _by_query(row_sum)).astype(q.dtype)
    if out.dtype != wide:
        # XLA may skip a rounding, and would keep the output for the backward pass in float32, which is twice the bytes.
        out = jax.lax.optimization_barrier(out)
    if not rematerialise:
        return out, (q, key_values, out, weights, row_sum, None)
    if target_platform() == "tpu":  # a second use of the maxima would store the scores, see `_Order`
        return out, (q, key_values, out, None, None, None)
    return out, (q, key_values, out, None, None, row_max + jnp.log(row_sum))


def _unnormalised(q, key_values):
    """Returns the weights of each item in q.dtype, and the maxima of scores and sums of weights (... h q) over all."""
    orders, wide = _orders(q, key_values), jnp.promote_types(q.dtype, jnp.float32)
    scores = _scores(q, key_values)
    maxima = [o.of_queries(s.max(o.key_axis)) for o, s in zip(orders, scores, strict=True)]
    row_max = functools.reduce(jnp.maximum, maxima)
    if target_platform() == "tpu" and len(scores) > 1:
        # The maximum over several items is known after all products. XLA would store the scores until then, in float32.
        # Computing them again takes less time. The barrier keeps XLA from seeing that they are the same.
        scores = _scores(jax.lax.optimization_barrier(q), key_values)
    weights = [jnp.exp(s - o.over_keys(row_max)).astype(q.dtype) for o, s in zip(orders, scores, strict=True)]
    sums = [o.of_queries(w.sum(o.key_axis, dtype=wide)) for o, w in zip(orders, weights, strict=True)]
    return weights, row_max, functools.reduce(jnp.add, sums)


def _softmax_backward(rematerialise, residuals, cotangent):
    q, key_values, out, weights, row_sum, log_sum = residuals
    orders, wide = _orders(q, key_values), jnp.promote_types(q.dtype, jnp.float32)
    cotangent = cotangent.astype(wide)
    if log_sum is not None:
        scores = _scores(q, key_values)
        weights = [jnp.exp(s - o.over_keys(log_sum)) for o, s in zip(orders, scores, strict=True)]
    elif weights is None:  # the barrier keeps XLA from keeping those of the forward pass
        weights, _, row_sum = _unnormalised(jax.lax.optimization_barrier(q), key_values)
    if row_sum is not None:  # dividing the cotangent divides all that follows, so the weights are never divided
        cotangent /= _by_query(row_sum)
    cotangent = cotangent.astype(q.dtype)
    mean = jnp.einsum("...qhe,...qhe->...hq", cotangent, out, preferred_element_type=wide)
    dq, gradients = jnp.zeros(q.shape, wide), []
    for order, weight, item in zip(orders, weights, key_values, strict=True):
        values = functools.partial(order.weights_values, weight.astype(q.dtype))
        dv = jax.vjp(values, item.v)[1](cotangent)[0]
        score = weight.astype(wide) * (order.query_keys(cotangent, item.v, wide) - order.over_keys(mean))
        bias = None if item.bias is None else _sum_to(order.swapped(score), item.bias)
        item_dq, dk = jax.vjp(order.query_keys, q, item.k)[1](score.astype(q.dtype))
        dq += item_dq
        gradients.append(KeyValues(dk, dv, None, bias))
    return dq.astype(q.dtype), tuple(gradients)


_softmax.defvjp(_softmax_forward, _softmax_backward)


class _Order(NamedTuple):
    """The order of scores and weights in memory: by default (... h q k).

    TPUs store the last two axes in tiles. With the queries last, maxima and sums over the keys of a query add whole
    tiles. XLA then computes the exponential and the sum in the same pass as the product of q and k, so that no score
    is stored. With the keys last it stores the scores in float32 and reads them twice (benchmarks/NOTES.md).

    Attributes:
        keys_first: the order is (... h k q).
        is_shared: the order is (h k ... q), in which XLA multiplies by keys that are the same for all groups.
    """

    keys_first: bool = False
    is_shared: bool = False

    @property
    def key_axis(self) -> int:
        return 1 if self.is_shared else -2 if self.keys_first else -1

    def swapped(self, x):
        """Returns x (... h q k) as (... h k q) with `keys_first`, and the inverse."""
        return jnp.swapaxes(x, -1, -2) if self.keys_first else x

    def of_queries(self, x):
        """Returns (... h q) of x in this order without the axis of keys."""
        return jnp.moveaxis(x, 0, -2) if self.is_shared else x

    def over_keys(self, x):
        """Returns x (... h q) in this order, with an axis of keys of size 1."""
        return jnp.expand_dims(jnp.moveaxis(x, -2, 0) if self.is_shared else x, self.key_axis)

    def query_keys(self, q, k, dtype=None):
        """Returns `query_keys` in this order."""
        if self.is_shared:
            return jnp.einsum("...qhe,khe->hk...q", q, k, preferred_element_type=dtype)
        if self.keys_first:
            return jnp.einsum("...qhe,...khe->...hkq", q, k, preferred_element_type=dtype)
        return query_keys(q, k, dtype)

    def weights_values(self, weights, v, dtype=None):
        """Returns `weights_values` of weights in this order."""
        if self.is_shared:
            return jnp.einsum("hk...q,khe->...qhe", weights, v, preferred_element_type=dtype)
        if self.keys_first:
            return jnp.einsum("...hkq,...khe->...qhe", weights, v, preferred_element_type=dtype)
        return weights_values(weights, v, dtype)


def _orders(q, key_values) -> list[_Order]:
    """Returns the best order for each item. A few queries would leave most of a tile empty."""
    if target_platform() != "tpu" or q.shape[-3] < TILE_ROWS:
        return [_Order()] * len(key_values)
    return [
        _Order(is_shared=True)
        if item.k.ndim == 3 < q.ndim and item.mask is None is item.bias
        else _Order(keys_first=True)
        for item in key_values
    ]


def _scaled(q):
    """Returns the queries by which `_scores` multiplies keys."""
    return jnp.asarray(q) * q.shape[-1] ** -0.5  # a NumPy array of bfloat16 would become float32


def _by_query(x):
    """Returns (... q h 1) of x (... h q)."""
    return jnp.swapaxes(x, -1, -2)[..., None]


def _scores(q, key_values, orders=None) -> list:
    """Returns the scores for each item of `key_values`, `_HIDDEN` where its mask hides a key.

    Args:
        q: queries, see `_scaled`.
        key_values: a list of `KeyValues`.
        orders: the order of each item; by default the best.
    """
    scores = []
    for order, item in zip(orders or _orders(q, key_values), key_values, strict=True):
        score = order.query_keys(q, item.k, jnp.promote_types(q.dtype, jnp.float32))
        if item.bias is not None:
            score += order.swapped(item.bias)
        scores.append(score if item.mask is None else jnp.where(order.swapped(item.mask), score, _HIDDEN))
    return scores


def _sum_to(x, like):
    """Returns the sum of x over the axes along which `like` was broadcast to its shape."""
    return jax.vjp(lambda small: jnp.broadcast_to(small, x.shape), like.astype(x.dtype))[1](x)[0].astype(like.dtype)


def softmax_with_dropout(q, key_values, dropout_fn):
    """Returns `softmax` with `dropout_fn` applied to the weights of the whole list together."""
    return weighted_values(softmax_weights(q, key_values, dropout_fn), q, key_values)


def softmax_weights(q, key_values, dropout_fn=lambda weights: weights):
    """Returns the weights of `softmax`, (... h q k) for each item of `key_values`, after `dropout_fn`."""
    scores = _scores(_scaled(q), key_values, [_Order()] * len(key_values))
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

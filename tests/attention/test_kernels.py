"""The kernel of softmax, whose backward pass is written by hand, against its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick_jit

from vidformers.attention.kernels import KeyValues, softmax
from vidformers.parallel.target import TILE_ROWS, traced_for


def definition(q, key_values):
    """Returns softmax attention (... q h e) over the keys of all items together, in plain operations."""
    scores = []
    for item in key_values:
        score = jnp.einsum("...qhe,...khe->...hqk", q, item.k) / q.shape[-1] ** 0.5
        score = score if item.bias is None else score + item.bias
        scores.append(score if item.mask is None else jnp.where(item.mask, score, -jnp.inf))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    v = [jnp.broadcast_to(item.v, (*q.shape[:-3], *item.v.shape[-3:])) for item in key_values]
    return jnp.einsum("...hqk,...khe->...qhe", weights, jnp.concatenate(v, axis=-3))


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


GROUPS, HEADS, WIDTH = (2, 3), 2, 4
QUERIES, KEYS = 16, 6  # the fewest queries for which TPUs have an order of their own
MASK = np.random.default_rng(0).random((3, 1, QUERIES, KEYS)) < 0.6
MASK[..., 0] = True  # no query without keys
DICTIONARY = KeyValues(draw(3, HEADS, WIDTH), draw(3, HEADS, WIDTH) + 1)
ALL_HIDDEN = MASK & (np.arange(QUERIES) > 0)[:, None]  # the first query reads the dictionary alone


@pytest.mark.quick
@pytest.mark.parametrize(
    "mask, bias, others",
    [
        (None, None, []),
        (MASK, None, []),
        (MASK[0, 0, :1], draw(HEADS, QUERIES, KEYS), []),
        (ALL_HIDDEN, draw(3, 1, 1, KEYS), [DICTIONARY]),
    ],
    ids=["plain", "mask", "bias", "dictionary"],
)
def test_outputs_and_gradients_of_softmax_are_those_of_its_definition(float64, mask, bias, others):
    q = draw(*GROUPS, QUERIES, HEADS, WIDTH)
    clip = KeyValues(draw(*GROUPS, KEYS, HEADS, WIDTH), draw(*GROUPS, KEYS, HEADS, WIDTH) + 1, None, bias)

    def loss(kernel, q, clip, others):
        out = kernel(q, [clip._replace(mask=mask), *others])
        return (out * draw(*out.shape)).sum(), out

    def results(platform, kernel, *arguments):
        with traced_for(platform):
            return jax.value_and_grad(partial(loss, kernel), (0, 1, 2), has_aux=True)(*arguments)

    kernels = [("cpu", definition)]
    kernels += [(on, partial(softmax, rematerialise=value)) for on in ("cpu", "tpu") for value in (False, True)]

    @quick_jit
    def run(*arguments):
        return [results(*each, *arguments) for each in kernels]

    expected, *found = run(q, clip, others)
    for result in found:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), result, expected)


def test_few_keys_of_several_items_are_joined_on_tpus():
    queries = 2 * TILE_ROWS
    q, clip = draw(*GROUPS, queries, HEADS, WIDTH), [draw(*GROUPS, KEYS, HEADS, WIDTH) for _ in "kv"]

    def loss(kernel, q, clip, dictionary):
        out = kernel(q, [KeyValues(*clip), KeyValues(*dictionary)])
        return (out * draw(*out.shape)).sum()

    def gradients(kernel):
        return jax.value_and_grad(partial(loss, kernel), (0, 1, 2))(q, clip, [DICTIONARY.k, DICTIONARY.v])

    with traced_for("tpu"):
        program = str(jax.make_jaxpr(partial(loss, softmax))(q, clip, [DICTIONARY.k, DICTIONARY.v]))
        found = gradients(softmax)
    assert f"{HEADS},{KEYS + 3},{queries}]" in program
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, gradients(definition))


def test_rematerialised_softmax_keeps_no_weights():
    q = jnp.zeros((QUERIES, HEADS, WIDTH), jnp.bfloat16)
    k = jnp.zeros((KEYS, HEADS, WIDTH), jnp.bfloat16)

    def kept(rematerialise):
        _, backward = jax.vjp(lambda q, k, v: softmax(q, [KeyValues(k, v)], rematerialise=rematerialise), q, k, k)
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(backward)]

    weights = (HEADS, QUERIES, KEYS)
    assert [dtype for shape, dtype in kept(False) if shape == weights] == [jnp.bfloat16]
    assert weights not in dict(kept(True))

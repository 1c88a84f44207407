"""The Pallas kernel for TPUs, run by the interpreter on the CPU, against the definition of softmax attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import quick_jit

from vidformers.attention.fused import attention_kernel
from vidformers.attention.kernels import KeyValues, softmax
from vidformers.attention.pallas import LANES, best_block, splash_attention
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.target import traced_for


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def with_gradients(kernel):
    """Returns a compiled function of (q, key_values): outputs, and gradients of q and of all keys and values."""

    def loss(q, keys_and_values, masks):
        items = [KeyValues(k, v, mask) for (k, v), mask in zip(keys_and_values, masks, strict=True)]
        out = kernel(q, items)
        return (out * draw(*out.shape)).sum(), out

    def run(q, *items):
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(q, [item[:2] for item in items], [i.mask for i in items])

    return run


def close(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, expected)


def hidden(*shape):
    mask = np.random.default_rng(shape).random(shape) < 0.6
    mask[..., 0] = True  # no query without keys
    return mask


@pytest.mark.quick
@pytest.mark.parametrize(
    "queries, keys, is_masked", [(131, 131, False), (128, 300, True)], ids=["odd length", "several blocks and a mask"]
)
def test_outputs_and_gradients_of_the_kernel_are_those_of_softmax(queries, keys, is_masked):
    q, k, v = (draw(2, n, 2, 8) for n in (queries, keys, keys))
    mask = hidden(2, keys) if is_masked else None

    def kernel(q, items):
        return splash_attention(q, items[0].k, items[0].v, mask, interpret=True, block=LANES)

    item = KeyValues(k, v, None if mask is None else mask[:, None, None])
    close(quick_jit(with_gradients(kernel))(q, item), quick_jit(with_gradients(softmax))(q, item))


@pytest.mark.parametrize("groups, part", [(2, "f32[1,1,5,2,8]"), (1, "f32[1,1,3,2,8]")], ids=["groups", "queries"])
def test_groups_or_padded_queries_are_divided_among_devices(groups, part):
    """With a mask over keys and with a dictionary, whose keys all devices read."""
    q, k, v = (draw(2, groups, n, 2, 8) for n in (5, 9, 9))
    items = [KeyValues(k, v, hidden(1, groups, 1, 1, 9)), KeyValues(draw(7, 2, 8), draw(7, 2, 8) + 1)]
    mesh = make_mesh(data=2, context=2, devices=jax.devices()[:4])
    pallas, einsum = (with_gradients(attention_kernel("softmax", backend)) for backend in ("pallas", "einsum"))
    expected = quick_jit(einsum)(q, *items)
    with traced_for("tpu"):
        run = jax.jit(with_mesh(mesh, pallas), in_shardings=NamedSharding(mesh, PartitionSpec()))
        text = str(jax.make_jaxpr(with_mesh(mesh, pallas))(q, *items))
        close(run(q, *items), expected)
    assert "pallas_call" in text and part in text  # the queries of each device


@pytest.mark.quick
def test_blocks_are_whole_tiles_that_pad_little():
    assert best_block(9) == LANES and best_block(1024) == 1024
    assert {length: best_block(length) for length in (1569, 3137, 6273)} == {1569: 896, 3137: 640, 6273: 640}


def test_half_precision_rounds_as_einsums_do():
    q, k, v = (jnp.asarray(draw(1, 131, 2, 8), jnp.bfloat16) for _ in range(3))
    exact = softmax(*(jnp.float32(q), [KeyValues(jnp.float32(k), jnp.float32(v))]))
    found = quick_jit(partial(splash_attention, interpret=True))(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.float32(found), exact, rtol=0.02, atol=0.02)

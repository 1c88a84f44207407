"""Convolutions whose gradient is computed place by place give what the convolution itself gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import quick_jit

from vidformers.layers.convolution import Conv


@pytest.mark.parametrize(
    "side, channels, width, size, options",
    [
        ((5, 8), 6, 6, (3, 3), dict(padding=1, feature_group_count=6)),
        ((7, 6), 6, 6, (3, 3), dict(padding=1, feature_group_count=6, strides=2)),
        ((1, 1), 6, 6, (3, 3), dict(padding=1, feature_group_count=6, strides=2)),
        ((4, 6, 7), 3, 5, (3, 3, 3), dict(padding=((1, 1),) * 3, strides=(2, 2, 2))),
        ((4, 9, 8), 3, 5, (3, 7, 7), dict(padding=((1, 1), (3, 3), (3, 3)), strides=(2, 4, 4))),
    ],
    ids=str,
)
def test_a_gradient_by_places_is_that_of_the_convolution(side, channels, width, size, options):
    rng = np.random.default_rng(0)
    own = Conv(channels, width, size, **options, rngs=nnx.Rngs(0))
    plain = nnx.Conv(channels, width, size, **options, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, *side, channels)).astype(np.float32)
    weights = rng.normal(size=own(x).shape).astype(np.float32)

    def loss(parameters, x, graph):
        return (nnx.merge(graph, parameters)(x) * weights).sum()

    found, expected = (
        quick_jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(parameters, x, graph)
        for graph, parameters in map(nnx.split, (own, plain))
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), found, expected)
    assert np.abs(np.asarray(jax.tree.leaves(found[1][0])[-1])).max() > 0


def test_in_bfloat16_places_are_summed_up_in_float32():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (4, 32, 32, 2)), jnp.bfloat16)
    module = Conv(2, 2, (3, 3), padding=1, feature_group_count=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(module)
    gradient = quick_jit(jax.grad(lambda p: nnx.merge(graph, p)(x).astype(jnp.float32).sum()))(parameters)
    inner = np.asarray(x, np.float32).sum((0, 1, 2))
    np.testing.assert_allclose(gradient["kernel"][...][1, 1, 0], inner, rtol=1e-2)

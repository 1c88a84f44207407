"""The activations of the MLP, alone and with dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidformers.layers.mlp import activation_with_dropout, gelu, gelu_quick, gelu_tanh
from vidformers.layers.tokens import LayerRng, dropout
from vidformers.parallel.target import traced_for


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activation", [gelu, gelu_tanh, gelu_quick])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_an_activation_with_dropout_equals_dropout_of_the_activation(platform, activation, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 3, 8, 10)), dtype)
    rngs = [LayerRng(jax.random.key(i), jnp.zeros(())) for i in range(2)]

    def results(function):
        value, pull = jax.vjp(function, x)
        return value, *pull(jnp.ones_like(value))

    with traced_for(platform):
        found = results(lambda x: activation_with_dropout(activation, x, 0.5, *rngs))
        expected = results(lambda x: dropout(activation(x), 0.5, *rngs))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert 0.2 < (found[1] == 0).mean() < 0.8

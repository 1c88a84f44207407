"""Convolutions against those of Flax, with their gradients, and average pooling on each platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sublayers import module
from tiny import quick_jit

from vidformers.layers.convolution import Conv, mean_pool
from vidformers.parallel.target import traced_for


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
def test_the_custom_gradient_equals_that_of_the_convolution(side, channels, width, size, options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *side, channels)).astype(np.float32)
    custom, parameters = module(lambda: Conv(channels, width, size, **options, rngs=nnx.Rngs(0)))
    plain, _ = module(lambda: nnx.Conv(channels, width, size, **options, rngs=nnx.Rngs(0)))

    def loss(graph, parameters, x):
        out = nnx.merge(graph, parameters)(x)
        return (out * np.random.default_rng(1).normal(size=out.shape).astype(np.float32)).sum()

    @quick_jit
    def gradients(parameters, x):
        return [jax.value_and_grad(partial(loss, graph), (0, 1))(parameters, x) for graph in (custom, plain)]

    ours, expected = gradients(parameters, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, expected)
    assert np.abs(ours[1][0]["kernel"]).max() > 0


@pytest.mark.quick
@pytest.mark.parametrize(
    "channels, width, size, options",
    [
        (3, 5, (3, 7, 7), dict(padding=((1, 1), (3, 3), (3, 3)), strides=(2, 4, 4))),
        (48, 2, (3, 3, 3), dict(padding=((1, 1),) * 3, strides=(2, 2, 2))),
        (48, 2, (3, 3, 3), dict(padding=((1, 1),) * 3, strides=(1, 2, 2))),
        (3, 5, (7, 7), dict(padding=((3, 3),) * 2, strides=(2, 2))),
        (3, 5, (7, 7), dict(padding=((2, 3),) * 2, strides=(4, 4))),
        (3, 5, (4, 4), dict(padding=((0, 0),) * 2, strides=(4, 4))),
    ],
    ids=str,
)
@pytest.mark.parametrize("columns", [7, 8])
def test_the_layout_for_tpus_computes_the_same(channels, width, size, options, columns):
    """Frames under the kernel lie side by side as channels of the input, with few channels, or of the output.

    With few channels, the columns of a step do, too, if the step divides their number.
    """
    x = np.random.default_rng(0).normal(size=(2, *(5, 6)[-len(size) + 1 :], columns, channels)).astype(np.float32)
    graph, parameters = module(lambda: Conv(channels, width, size, **options, rngs=nnx.Rngs(0)))

    def gradients(parameters, x):
        return jax.value_and_grad(lambda p, x: (jnp.sin(nnx.merge(graph, p)(x))).sum(), (0, 1))(parameters, x)

    with traced_for("tpu"):
        found = quick_jit(partial(gradients))(parameters, x)  # a new function, which is traced again
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, quick_jit(gradients)(parameters, x))


@pytest.mark.quick
def test_in_bfloat16_the_gradient_is_summed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (4, 32, 32, 2)), jnp.bfloat16)
    options = dict(padding=1, feature_group_count=2, dtype=jnp.bfloat16)
    graph, parameters = module(lambda: Conv(2, 2, (3, 3), **options, rngs=nnx.Rngs(0)))
    gradient = quick_jit(jax.grad(lambda p: nnx.merge(graph, p)(x).astype(jnp.float32).sum()))(parameters)
    inner = np.asarray(x, np.float32).sum((0, 1, 2))
    np.testing.assert_allclose(gradient["kernel"][1, 1, 0], inner, rtol=1e-2)


@pytest.mark.quick
@pytest.mark.parametrize("side, stride", [((4, 6), 2), ((7, 5), 2), ((1, 3), 2), ((9, 8), 4)])
def test_mean_pooling_repeats_the_last_row_and_column_on_every_platform(side, stride):
    x = np.random.default_rng(0).normal(size=(2, 3, *side, 5)).astype(np.float32)
    rows, columns = (np.minimum(np.arange(-(-length // stride) * stride), length - 1) for length in side)
    cells = x[:, :, rows][:, :, :, columns].reshape(2, 3, len(rows) // stride, stride, -1, stride, 5)
    for platform in ("cpu", "tpu"):
        with traced_for(platform):
            np.testing.assert_allclose(mean_pool(x, stride), cells.mean((3, 5)), rtol=1e-5, atol=1e-6)

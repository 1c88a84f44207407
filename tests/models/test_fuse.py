"""Fused projections give the same logits and gradients with fewer multiply-adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import clips, make, quick_jit

from vidformers.models.fuse import fuse_projections
from vidformers.models.summary import count_macs

MODELS = [dict(name="timesformer"), dict(name="havit", temporal_fc=True)]


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_logits_and_gradients_equal_those_of_separate_maps(options, float64):
    graph, parameters = make(**options, dtype="float64")
    parameters = jax.tree.map(lambda leaf: leaf.astype(np.float64), parameters)
    video, mixture = clips(2), np.random.default_rng(0).normal(size=(2, 5))

    def loss(parameters, change):
        return (change(nnx.merge(graph, parameters))(video) * mixture).sum()

    @quick_jit
    def both(parameters):
        return [jax.value_and_grad(loss)(parameters, change) for change in (lambda model: model, fuse_projections)]

    separate, fused = both(parameters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8), separate, fused)


@pytest.mark.quick
def test_fused_projections_take_fewer_multiply_adds_and_leave_the_parameters_unchanged():
    graph, parameters = make("timesformer")
    before = jax.tree.map(np.copy, parameters)
    macs = [
        count_macs(lambda p, change=change: change(nnx.merge(graph, p))(jnp.asarray(clips(8))), parameters).total
        for change in (lambda model: model, fuse_projections)
    ]
    assert macs[1] < macs[0]
    jax.tree.map(np.testing.assert_array_equal, before, parameters)

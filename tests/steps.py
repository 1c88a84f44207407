"""Training steps of tiny models, which the tests of one device and of eight share."""

from functools import cache, partial

import jax
import numpy as np
from tiny import clips, make, quick_jit

from vidformers.training.loss import Loss
from vidformers.training.optim import make_optimizer
from vidformers.training.step import State, make_step

# SGD, since Adam divides each gradient by its own size: rounding errors of gradients that are zero by theory, such as
# those of key biases, would become whole updates.
SGD = dict(name="sgd", lr=0.05, weight_decay=1e-3, schedule="constant")
EMA_DECAY = 0.75
SMOOTHING = 0.2
# The one model that is trained with an EMA. An EMA is computed elementwise from the parameters, whatever the model, and
# takes a fifth of the time to compile.
WITH_EMA = "vit"
# Two stages instead of three, for the time that they take to compile: one that doubles the width, and one that halves
# the grid.
SMALLER = {"stat": dict(depths=(1, 2), depth=3)}


def batch(seed: int, rows: int = 16, mask=None):
    """Returns clips of noise with random labels. The pixels are floats, so that a test can set them to NaN."""
    rng = np.random.default_rng(seed)
    return {
        "video": (clips(rows, seed=seed) / 127.5 - 1).astype(np.float32),
        "label": rng.integers(0, 5, rows).astype(np.int32),
        "mask": np.ones(rows, np.float32) if mask is None else np.float32(mask),
    }


def zeros_of(optimizer, parameters):
    """Returns the initial optimizer state, which is zero, without compiling a program for each shape."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, parameters))


@cache
def training(name, accumulate=1):
    """Returns (step, not compiled; state with random parameters)."""
    graph, parameters = make(name, **SMALLER.get(name, {}))
    optimizer, schedule = make_optimizer(10, 1, **SGD)
    ema, ema_decay = (jax.tree.map(np.copy, parameters), EMA_DECAY) if name == WITH_EMA else ((), None)
    options = dict(seed=0, accumulate=accumulate, loss=Loss(SMOOTHING), ema_decay=ema_decay)
    step = make_step(graph, optimizer, schedule, **options)
    return step, State(np.int32(0), parameters, zeros_of(optimizer, parameters), ema)


@cache
def compiled_step(name, **options):
    """Returns the step, compiled for one device."""
    return quick_jit(training(name, **options)[0])


@cache
def two_steps(name):
    """Returns (state, metrics) after each of two steps on one device."""
    state, trace = training(name)[1], []
    for seed in range(2):
        state, metrics = compiled_step(name)(state, batch(seed))
        trace.append((state, metrics))
    return trace


def same(actual, expected, rtol=1e-4, atol=1e-5):
    """Asserts that two trees are equal up to rounding."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected)

"""Updating the layers in the backward pass gives the same step, without a gradient of the whole model."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from steps import same, zeros_of
from tiny import clips, make, maker, quick_jit

from vidformers import ConfigError
from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.state import replicated_sharding, state_shardings
from vidformers.training.loss import Loss
from vidformers.training.optim import make_optimizer
from vidformers.training.step import State, initial_state, make_step
from vidformers.training.update_in_backward import REST, merge_stages, split_stages

CLOSE = dict(rtol=1e-6, atol=1e-9)
NOISY = dict(depth=3, dropout=0.1, drop_path=0.2)
SHARED = dict(attention="joint", class_token="input", class_blocks=0, dictionary_per="model")
SMOOTHED = Loss(0.1)
WEIGHTS = np.float32([0.5, 2.0, 1.0, 4.0, 0.25])
ADAMW, SGD = dict(name="adamw", lr=1e-3, weight_decay=0.1), dict(name="sgd", lr=0.05, nesterov=True)


def batch(seed: int, rows: int = 8, several_labels: bool = False):
    """Returns clips of noise with random labels; row 3 is masked."""
    rng = np.random.default_rng(seed)
    numbers, several = rng.integers(0, 5, rows).astype(np.int32), rng.integers(0, 2, (rows, 5)).astype(np.float32)
    return {
        "video": clips(rows, seed=seed),
        "label": several if several_labels else numbers,
        "mask": np.float32(np.arange(rows) != 3),
    }


def step_and_state(name, in_backward, optimizer, loss=SMOOTHED, layer_decay=0.75, **options):
    graph, parameters = make(name, remat="full", dtype="float64", **options)
    parameters = jax.tree.map(np.float64, parameters)
    optimizer, schedule = make_optimizer(10, 1, schedule="constant", ema_decay=0.75, **optimizer)
    options = dict(seed=0, loss=loss, ema_decay=0.75, in_backward=in_backward, layer_decay=layer_decay)
    step = make_step(graph, optimizer, schedule, **options)
    return step, State(np.int32(0), parameters, zeros_of(optimizer, parameters), parameters)


def two_steps(step, state, several_labels, put=lambda batch: batch):
    """Returns (state, metrics) after each of two steps."""
    trace = []
    for seed in range(2):
        state, metrics = step(state, put(batch(seed, several_labels=several_labels)))
        trace.append((state, metrics))
    return trace


@pytest.mark.parametrize(
    "name, optimizer, loss, options, mesh",
    [
        ("timesformer", ADAMW, SMOOTHED, NOISY, dict(data=2, fsdp=2, context=2)),
        ("vtn", SGD, Loss(0.1, WEIGHTS, several_labels=True), {}, None),
        ("havit", SGD, Loss(0.1, WEIGHTS), SHARED, dict(fsdp=2)),
    ],
)
def test_it_is_the_same_step(name, optimizer, loss, options, mesh, float64):
    step, state = step_and_state(name, False, optimizer, loss, **options)
    expected = two_steps(quick_jit(step), state, loss.several_labels)
    step, _ = step_and_state(name, True, optimizer, loss, **options)
    if mesh is None:
        return same(two_steps(quick_jit(step), state, loss.several_labels), expected, **CLOSE)
    mesh = make_mesh(**mesh)
    shardings = state_shardings(mesh, state)
    step = quick_jit(with_mesh(mesh, step), out_shardings=(shardings, replicated_sharding(mesh)))
    put = partial(put_batch, mesh)
    same(two_steps(step, jax.device_put(state, shardings), loss.several_labels, put), expected, **CLOSE)


@pytest.mark.quick
def test_a_stage_of_one_layer_is_updated_with_the_rest():
    parameters = make("mevit", depth=3, class_blocks=1)[1]
    stages = split_stages(parameters)
    depths = {path: len(jax.tree.leaves(stage)[0]) for path, stage in stages.items() if path != REST}
    assert depths == {("encoder", "stages", 1, "layers"): 2}
    assert {"0", "2"} <= {str(stage) for stage in stages[REST]["encoder"]["stages"]}
    jax.tree.map(np.testing.assert_array_equal, merge_stages(stages), parameters)


def memory(in_backward):
    """Returns (bytes of the parameters, bytes of temporary memory of a step)."""
    make_model = maker("vit", remat="full", width=128, depth=8)
    optimizer, schedule = make_optimizer(10, 1, schedule="constant")
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    state = jax.eval_shape(partial(initial_state, make_model, optimizer, None, 0))
    step = quick_jit(make_step(graph, optimizer, schedule, seed=0, in_backward=in_backward), donate_argnums=0)
    temporary = step.lower(state, batch(0, rows=1)).compile().memory_analysis().temp_size_in_bytes
    return sum(4 * leaf.size for leaf in jax.tree.leaves(state.parameters)), temporary


def test_the_stacks_are_written_in_place_and_the_gradient_is_never_materialised():
    """A step needs less temporary memory than the parameters take. The ordinary step needs more."""
    parameters, temporary = memory(in_backward=True)
    assert temporary < 0.7 * parameters
    parameters, temporary = memory(in_backward=False)
    assert temporary > parameters


def test_a_layer_whose_gradient_is_not_finite_keeps_its_values(float64):
    step, state = step_and_state("vit", True, SGD)
    broken = batch(0)
    broken["video"] = np.full(broken["video"].shape, np.nan)
    new, metrics = quick_jit(step)(state, broken)
    assert not np.isfinite(metrics["gradient_norm"]), "the trainer ends the run by this"
    stages = [tree["encoder"]["stages"] for tree in (new.parameters, state.parameters)]
    jax.tree.map(np.testing.assert_array_equal, *stages)


@pytest.mark.quick
@pytest.mark.parametrize("options", [dict(clip_norm=1.0), dict(frozen=("encoder",))], ids=str)
def test_what_needs_the_whole_gradient_is_refused(options):
    with pytest.raises(
        ConfigError, match=r"^optim\.in_backward=true .*optim\.clip_norm=none and optim\.frozen=\(\)\.$"
    ):
        make_optimizer(10, 1, in_backward=True, **options)

"""The training step: accumulation, masks, averages, schedules; one device and eight train alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import MEVIT, TINY, clips, make

from vidformers import build
from vidformers.errors import ConfigError
from vidformers.optim import decay_mask, in_steps, make_optimizer
from vidformers.sharding import make_mesh, put_batch, replicated, state_shardings
from vidformers.step import State, initial_state, make_step

ROWS = 16


def batch(seed=0, rows=ROWS):
    labels = np.random.default_rng(seed).integers(0, 5, rows).astype(np.int32)
    return {"video": clips(rows, seed), "label": labels, "mask": np.ones(rows, np.float32)}


def trainer(name="vit", optimizer=None, **options):
    """(step compiled, state) of a tiny model with random parameters."""
    graph, parameters = make(name)
    optimizer, rate = optimizer or (optax.sgd(0.1), lambda step: 0.1)
    average = jax.tree.map(jnp.asarray, parameters) if options.get("ema_decay") else ()
    state = State(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), average)
    return jax.jit(make_step(graph, optimizer, rate, seed=0, **options)), state


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_two_micro_batches_of_eight_equal_one_of_sixteen():
    whole, state = trainer()
    halves, _ = trainer(accumulate=2)
    rows = batch() | {"mask": np.r_[np.zeros(3), np.ones(ROWS - 3)].astype(np.float32)}
    (a, figures_a), (b, figures_b) = whole(state, rows), halves(state, rows)
    close(a.parameters, b.parameters, atol=2e-6)
    close(figures_a, figures_b, rtol=1e-5)


def test_a_masked_row_has_no_influence_whatever_it_shows():
    step, state = trainer()
    rows, mask = batch(), np.ones(ROWS, np.float32)
    mask[[2, 7]] = 0
    other = rows["video"].copy()
    other[[2, 7]] = 255 - other[[2, 7]]
    a, figures = step(state, rows | {"mask": mask})
    b, _ = step(state, rows | {"mask": mask, "video": other, "label": np.where(mask > 0, rows["label"], 4)})
    assert figures["count"] == ROWS - 2
    close(a.parameters, b.parameters, rtol=0, atol=0)


def test_label_smoothing_follows_its_formula():
    step, state = trainer(label_smoothing=0.2)
    _, figures = step(state, batch())
    logits = jax.jit(lambda p, x: nnx.merge(make("vit")[0], p)(x))(state.parameters, batch()["video"])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = -(0.8 * log_p[np.arange(ROWS), batch()["label"]] + 0.2 * log_p.mean(axis=1)).mean()
    assert float(figures["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_moving_average_follows_its_formula_and_is_what_is_evaluated():
    step, state = trainer(ema_decay=0.9)
    after, _ = step(state, batch())
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.average, after.parameters)
    close(after.average, expected, atol=1e-6)
    assert after.evaluated is after.average
    assert state._replace(average=()).evaluated is state.parameters


def test_weight_decay_spares_all_but_kernels_unless_told_otherwise():
    parameters = make("mevit")[1]
    for path, decayed in jax.tree_util.tree_leaves_with_path(decay_mask(parameters, "kernels")):
        assert decayed == (path[-1].key == "kernel")
    assert all(jax.tree.leaves(decay_mask(parameters, "all")))
    optimizer, _ = make_optimizer(10, 1, name="sgd", lr=0.1, weight_decay=0.5, schedule="constant", momentum=0.0)
    still = jax.tree.map(np.zeros_like, parameters)
    updates, _ = optimizer.update(still, optimizer.init(parameters), parameters)
    for (path, update), value in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(parameters)):
        expected = -0.1 * 0.5 * value if path[-1].key == "kernel" else 0 * value
        np.testing.assert_allclose(update, expected, atol=1e-6)


def test_schedules_warm_up_and_then_fall_as_said():
    _, cosine = make_optimizer(100, 10, lr=1.0, warmup_epochs=1)
    assert cosine(0) == 0 and cosine(5) == pytest.approx(0.5) and cosine(10) == pytest.approx(1.0)
    assert cosine(55) == pytest.approx(0.5) and cosine(100) == pytest.approx(0.0, abs=1e-6)
    _, drops = make_optimizer(100, 10, name="sgd", lr=1.0, schedule="step", drop_epochs=(4.0, 8.0), warmup_steps=10)
    assert [round(float(drops(step)), 4) for step in (10, 39, 41, 79, 81)] == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_clipping_bounds_the_gradient_that_the_optimiser_sees():
    optimizer, _ = make_optimizer(10, 1, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant",
                                  clip_norm=0.5)
    gradient = {"kernel": np.full((3, 3), 7.0, np.float32)}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    assert np.linalg.norm(updates["kernel"]) == pytest.approx(0.5, rel=1e-5)


def test_a_duration_is_given_in_one_unit():
    assert in_steps("train.total", None, 2.5, 10) == 25 and in_steps("train.total", 7, None, 10) == 7
    assert in_steps("train.total", None, None, 10) is None
    with pytest.raises(ConfigError, match="train.total_steps=7 and train.total_epochs=1.0 are both set"):
        in_steps("train.total", 7, 1.0, 10)


def train_on(mesh, name, steps=2):
    options = {**TINY, **(MEVIT if name == "mevit" else {})}
    make_model = partial(build, name, **options)
    # Not Adam: it divides what is only rounding, as a key bias's gradient is, by itself.
    optimizer, rate = make_optimizer(10, 10, name="sgd", lr=0.05, schedule="constant", clip_norm=1.0)
    graph = make(name)[0]
    init = partial(initial_state, make_model, optimizer, 0.5, 0)
    shardings = state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    step = jax.jit(make_step(graph, optimizer, rate, seed=0, ema_decay=0.5), donate_argnums=0,
                   out_shardings=(shardings, replicated(mesh)))
    losses = []
    for number in range(steps):
        state, figures = step(state, put_batch(mesh, batch(number)))
        losses.append(float(figures["loss"]))
    return losses, state


@pytest.mark.parametrize("name", ["vit", "mevit"])
def test_one_device_equals_eight_and_the_state_is_spread_over_fsdp(name):
    one = make_mesh(devices=jax.devices()[:1])
    losses, state = train_on(one, name)
    for shape in (dict(data=8), dict(data=2, fsdp=4)):
        mesh = make_mesh(**shape)
        spread_losses, spread = train_on(mesh, name)
        np.testing.assert_allclose(spread_losses, losses, rtol=1e-5)
        close(state.parameters, spread.parameters, atol=2e-6)
        leaves = jax.tree.leaves(spread)
        share = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)
        assert share <= 1.05 / mesh.shape["fsdp"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(spread.parameters):
            if any(getattr(part, "key", None) == "layers" for part in path):
                assert leaf.addressable_shards[0].data.shape[0] == leaf.shape[0], "the layer axis is split"


def test_a_mesh_that_is_not_the_devices_is_refused():
    with pytest.raises(ConfigError, match="mesh.data=4 x mesh.fsdp=4 needs 16 devices; there are 8"):
        make_mesh(data=4, fsdp=4)

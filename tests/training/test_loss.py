"""The loss: cross-entropy with one label a clip, binary cross-entropy with several, and the weights of classes."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from steps import SGD, batch, same, zeros_of
from tiny import make, quick_jit

from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.state import replicated_sharding, state_shardings
from vidformers.training.loss import Loss
from vidformers.training.mixing import Mixing
from vidformers.training.optim import make_optimizer
from vidformers.training.step import State, make_step

ROWS, CLASSES = 16, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
NUMBERS = RNG.integers(0, CLASSES, ROWS).astype(np.int32)
MANY = RNG.integers(0, 2, (ROWS, CLASSES)).astype(np.float32)  # some rows have no label
WEIGHTS = np.float32([0.5, 2.0, 1.0, 4.0, 0.25])
ONES = np.ones(CLASSES, np.float32)


def loss_of(loss, label, mix=lambda targets: targets):
    return np.asarray(loss(LOGITS, mix(loss.targets(label, CLASSES))))


def mixed(targets, key=3):
    """Mixes targets of rows as the step does."""
    video = np.zeros((ROWS, 1, 4, 4, 3), np.uint8)
    return Mixing(mixup=0.8)(video, targets, np.ones(ROWS), jax.random.key(key))[1]


@pytest.mark.quick
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_with_several_labels_it_is_the_binary_cross_entropy(smoothing, weights):
    loss = Loss(smoothing, weights, several_labels=True)
    p, t = 1 / (1 + np.exp(-LOGITS.astype(float))), MANY * (1 - smoothing) + smoothing / 2
    terms = (1 if weights is None else weights) * t * np.log(p) + (1 - t) * np.log(1 - p)
    np.testing.assert_allclose(loss_of(loss, MANY), -terms.mean(1), rtol=1e-5)


@pytest.mark.quick
def test_large_logits_give_a_finite_loss_and_gradient():
    loss, targets = Loss(several_labels=True), np.float32([[1, 0], [0, 1]])
    value, gradient = jax.value_and_grad(lambda z: loss(z, loss.targets(targets, 2)).sum())(
        np.float32([[500, -500]] * 2)
    )
    np.testing.assert_allclose(value, 500)
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, -0.5]])


@pytest.mark.quick
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_weight_of_a_class_multiplies_the_loss_of_its_clips(smoothing):
    plain = loss_of(Loss(smoothing), NUMBERS)
    np.testing.assert_allclose(loss_of(Loss(smoothing, WEIGHTS), NUMBERS), WEIGHTS[NUMBERS] * plain, rtol=1e-6)
    np.testing.assert_array_equal(loss_of(Loss(smoothing, ONES), NUMBERS), plain)
    many = Loss(smoothing, several_labels=True)
    np.testing.assert_allclose(loss_of(replace(many, class_weights=ONES), MANY), loss_of(many, MANY), rtol=1e-6)


@pytest.mark.quick
def test_mixing_mixes_weights_and_several_labels_as_it_mixes_targets():
    share = np.asarray(mixed(np.eye(ROWS, dtype=np.float32)))  # row i holds the shares of all rows in row i
    assert (np.diag(share) < 1).any()
    loss = Loss(0.1, WEIGHTS)
    expected = (share @ WEIGHTS[NUMBERS]) * loss_of(Loss(0.1), NUMBERS, mixed)
    np.testing.assert_allclose(loss_of(loss, NUMBERS, mixed), expected, rtol=1e-5)
    many = Loss(0.1, several_labels=True)
    np.testing.assert_allclose(
        mixed(many.targets(MANY, CLASSES)).classes, share @ many.targets(MANY, CLASSES).classes, rtol=1e-5
    )
    # The loss is linear in the targets.
    by_row = np.stack(
        [np.asarray(many(LOGITS, many.targets(np.roll(MANY, ROWS // 2, 0), CLASSES))), loss_of(many, MANY)]
    )
    own = np.diag(share)
    np.testing.assert_allclose(loss_of(many, MANY, mixed), (1 - own) * by_row[0] + own * by_row[1], rtol=1e-5)


def test_a_step_with_several_labels_is_the_same_on_four_devices_in_micro_batches():
    """The masked row has labels, as a video that cannot be decoded has. The metrics have no top-1."""
    rows = batch(0, mask=np.arange(ROWS) != 5) | {"label": MANY}
    graph, parameters = make("vit")
    optimizer, schedule = make_optimizer(10, 1, **SGD)
    state = State(np.int32(0), parameters, zeros_of(optimizer, parameters), ())
    step = partial(make_step, graph, optimizer, schedule, seed=0, loss=Loss(0.1, WEIGHTS, several_labels=True))
    expected, metrics = quick_jit(step())(state, rows)
    assert "top1" not in metrics and metrics["count"] == ROWS - 1
    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    shardings = state_shardings(mesh, state)
    sharded = quick_jit(with_mesh(mesh, step(accumulate=2)), out_shardings=(shardings, replicated_sharding(mesh)))
    same(sharded(jax.device_put(state, shardings), put_batch(mesh, rows)), (expected, metrics))
    assert np.abs(expected.parameters["head"]["bias"] - parameters["head"]["bias"]).max() > 1e-4

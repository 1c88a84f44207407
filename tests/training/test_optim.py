"""Optimizers and learning-rate schedules."""

import re

import jax
import numpy as np
import optax
import pytest
from steps import same, zeros_of
from tiny import make, quick_jit

from vidformers import ConfigError
from vidformers.training.optim import decay_mask, duration_in_steps, make_optimizer


def rates(steps, *arguments, **section):
    """Returns the learning rates at `steps`."""
    return quick_jit(make_optimizer(*arguments, **section)[1])(np.array(steps))


@pytest.mark.quick
def test_weight_decay_applies_to_kernels_alone():
    parameters = make("mevit")[1]
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(parameters, "kernels"))
    assert {jax.tree_util.keystr(path).split("'")[-2] for path, decayed in mask if decayed} == {"kernel"}
    spared = {jax.tree_util.keystr(path).split("'")[-2] for path, decayed in mask if not decayed}
    assert spared == {"bias", "scale", "class_token", "space", "time"}
    assert all(jax.tree.leaves(decay_mask(parameters, "all")))


@pytest.mark.quick
def test_weight_decay_spares_what_takes_the_place_of_batch_normalisation():
    own = dict(backbone="resnet", depth=2, depths=(1, 1), stem=8, temporal_depth=1, window=(8,))
    parameters = make("vtn", **own)[1]
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(parameters, "all_but_batch_norm"))
    spared = {jax.tree_util.keystr(path) for path, decays in mask if not decays}
    convolutions = 1 + 2 * (3 + 1)  # the stem, and three of each bottleneck with its skip connection
    assert len(spared) == 2 * convolutions and all("['encoder']" in path for path in spared)
    assert {path.split("'")[-2] for path in spared} == {"scale", "bias"}
    assert any("norm" in jax.tree_util.keystr(path) for path, decays in mask if decays)
    assert all(jax.tree.leaves(decay_mask(make("timesformer")[1], "all_but_batch_norm")))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_a_gradient_only_decayed_parameters_move(name):
    optimizer, _ = make_optimizer(10, 1, name=name, lr=0.1, weight_decay=0.5, schedule="constant")
    parameters = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    gradient = jax.tree.map(np.zeros_like, parameters)
    updates, _ = quick_jit(optimizer.update)(gradient, zeros_of(optimizer, parameters), parameters)
    expected = {"kernel": 0.95 * np.ones((2, 2)), "bias": np.ones(2)}
    same(jax.tree.map(np.add, parameters, updates), expected, rtol=1e-6)


@pytest.mark.quick
def test_the_cosine_warms_up_from_zero_and_ends_at_zero():
    actual = rates((0, 5, 10, 60, 110), 110, 10, lr=0.4, warmup_epochs=1.0, schedule="cosine")
    same(actual, [0, 0.2, 0.4, 0.2, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.quick
def test_the_ends_of_the_cosine_may_be_above_zero():
    actual = rates((0, 5, 10, 60, 110), 110, 10, lr=0.4, warmup_epochs=1.0, start_lr=0.1, end_lr=0.2)
    same(actual, [0.1, 0.25, 0.4, 0.3, 0.2], rtol=1e-5)


def test_the_step_schedule_drops_at_its_epochs_counted_from_the_start():
    expected = {0: 0, 20: 1, 109: 1, 110: 0.1, 111: 0.1, 139: 0.1, 140: 0.01, 141: 0.01}
    actual = rates(list(expected), 150, 10, lr=1.0, warmup_steps=20, schedule="step", drop_epochs=(11.0, 14.0))
    same(actual, list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("warmup", [dict(warmup_steps=40), dict(warmup_epochs=5.0)])
def test_a_warm_up_that_is_too_long_is_answered_with_one_that_is_not(warmup):
    with pytest.raises(ConfigError, match="must be shorter than the run of 40 steps") as refusal:
        rates([0], 40, 8, **warmup)
    ((name, value),) = re.findall(r"Set optim\.(\w+)=([\d.]+), a tenth", str(refusal.value))
    assert {name} == set(warmup)
    actual = rates((0, 4, 5, 40), 40, 8, lr=1.0, **{name: type(warmup[name])(value)})
    assert actual[0] == 0 and actual[1] == 1 > actual[2]


def test_a_constant_rate_needs_no_warm_up():
    same(rates((0, 9), 10, 1, lr=0.3, schedule="constant"), [0.3, 0.3], rtol=1e-6)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    optimizer, _ = make_optimizer(
        10, 1, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=2.0
    )
    gradient = {"a": np.full(8, 3.0, np.float32), "b": np.full(8, 4.0, np.float32)}
    updates, _ = quick_jit(optimizer.update)(gradient, zeros_of(optimizer, gradient), gradient)
    same(optax.tree.norm(jax.tree.map(np.asarray, updates)), 2.0)


@pytest.mark.quick
def test_a_duration_has_one_unit():
    assert duration_in_steps("optim.warmup", 7, None, 10) == 7
    assert duration_in_steps("optim.warmup", None, 1.5, 10) == 15
    assert duration_in_steps("optim.warmup", None, None, 10) is None
    with pytest.raises(ConfigError, match="optim.warmup_steps=7 and optim.warmup_epochs=1"):
        duration_in_steps("optim.warmup", 7, 1.0, 10)
    with pytest.raises(ConfigError, match="optim.warmup_steps"):
        duration_in_steps("optim.warmup", -1, None, 10)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, field",
    [
        (dict(name="adam"), "optim.name='adam'"),
        (dict(schedule="linear"), "optim.schedule='linear'"),
        (dict(lr=0.0), "optim.lr=0.0"),
        (dict(end_lr=0.1), "optim.end_lr=0.1 must be between 0 and optim.lr"),
        (dict(start_lr=-0.1), "optim.start_lr=-0.1"),
        (dict(decay="none"), "optim.decay='none'"),
        (dict(b1=1.0), "optim.b1=1.0"),
        (dict(ema_decay=1.0), "optim.ema_decay=1.0"),
        (dict(clip_norm=0.0), "optim.clip_norm=0.0"),
        (dict(weight_decay=-1.0), "optim.weight_decay=-1.0"),
        (dict(drop_epochs=("ten",)), "optim.drop_epochs="),
        (dict(drop_factor=0.0), "optim.drop_factor=0.0"),
        (dict(warmup_steps=10), "warm-up of 10 steps"),
    ],
    ids=str,
)
def test_an_optimizer_that_cannot_work_is_refused(options, field):
    with pytest.raises(ConfigError, match=field):
        make_optimizer(10, 1, **options)


@pytest.mark.quick
def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        make_optimizer(10, 1, learning_rate=0.1)

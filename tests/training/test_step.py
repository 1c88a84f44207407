"""The training step on one device: loss, micro-batches and EMA. `test_devices` compares eight devices with one."""

import jax
import numpy as np
import pytest
from flax import nnx
from steps import EMA_DECAY, SMOOTHING, batch, compiled_step, same, training, two_steps
from tiny import make, quick_jit


@pytest.mark.quick
def test_a_masked_row_has_no_influence_whatever_its_pixels():
    mask = np.arange(16) % 3 > 0
    first = batch(0, mask=mask)
    expected = compiled_step("vit")(training("vit")[1], first)
    for pixels in (batch(9)["video"], np.float32(np.nan)):
        other = {
            **first,
            "video": np.where(mask[:, None, None, None, None], first["video"], pixels),
            "label": np.where(mask, first["label"], 0).astype(np.int32),
        }
        same(compiled_step("vit")(training("vit")[1], other), expected, rtol=0, atol=0)
    assert expected[1]["count"] == mask.sum()


def test_micro_batches_equal_one_batch():
    result = compiled_step("vit", accumulate=2)(training("vit")[1], batch(0))
    same(result, two_steps("vit")[0])


@pytest.mark.quick
def test_the_loss_is_the_mean_over_the_rows_of_mask_1():
    """Masks half of the rows, or replaces them by the other half: the mean is the same."""
    mask = np.arange(16) < 8
    rows = batch(0, mask=mask)
    masked = compiled_step("vit")(training("vit")[1], rows)[1]
    twice = {name: np.concatenate([value[:8]] * 2) for name, value in rows.items()}
    repeated = compiled_step("vit")(training("vit")[1], twice)[1]
    for name in ("loss", "top1", "gradient_norm"):
        same(masked[name], repeated[name])


def test_label_smoothing_mixes_the_labels_with_the_uniform_distribution():
    graph, parameters = make("vit")
    rows = batch(0)
    logits = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, rows["video"])
    log_p = np.asarray(logits) - np.log(np.exp(logits).sum(-1, keepdims=True))
    label_log_p = log_p[np.arange(16), rows["label"]]
    expected = -np.mean((1 - SMOOTHING) * label_log_p + SMOOTHING * log_p.mean(1))
    same(two_steps("vit")[0][1]["loss"], expected)
    assert abs(expected + label_log_p.mean()) > 1e-2, "the smoothing changes the loss"


def test_the_ema_follows_its_formula_and_is_what_evaluation_uses():
    ema = training("vit")[1].parameters
    for state, _ in two_steps("vit"):
        ema = jax.tree.map(lambda a, p: EMA_DECAY * a + (1 - EMA_DECAY) * np.asarray(p), ema, state.parameters)
        same(state.ema, ema, rtol=1e-5, atol=1e-6)
        assert state.eval_parameters is state.ema
    assert state._replace(ema=()).eval_parameters is state.parameters
    assert state.step == 2

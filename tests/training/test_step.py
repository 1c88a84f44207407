"""The training step on one device: loss, micro-batches and EMA. `test_devices` compares eight devices with one."""

import jax
import numpy as np
import pytest
from flax import nnx
from steps import EMA_DECAY, SGD, SMOOTHING, batch, compiled_step, same, training, two_steps, zeros_of
from tiny import make, quick_jit

from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.state import replicated_sharding, stack_layers, state_shardings, unstack_layers
from vidformers.training.optim import make_optimizer
from vidformers.training.step import State, make_step


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


@pytest.mark.parametrize(
    "model, mesh",
    [("tokenshift", None), ("tokenshift", dict(data=2, fsdp=4)), ("joint", None)],
    ids=["one device", "fsdp", "class tokens of clips"],
)
def test_layers_as_separate_arrays_and_class_tokens_as_rows_of_groups_change_nothing(model, mesh):
    """A loop over layers that are separate arrays equals a scan over stacks, its random numbers included.

    Class tokens of frames or clips are joined to their patches in both, in the loop not in the last block. The
    reference runs sublayers that refuse joined tokens.
    """
    optimizer, schedule = make_optimizer(10, 1, **SGD | dict(name="adamw", lr=1e-3))
    options = dict(depth=3, dropout=0.3, drop_path=0.2)

    def run(separate, joined=True, **unroll):
        graph, parameters = make(model, **options, **unroll)
        if not joined:
            graph = without_joined(graph, parameters)
        state = State(np.int32(0), parameters, zeros_of(optimizer, parameters), ())
        step = make_step(graph, optimizer, schedule, seed=0)
        state = unstack_layers(state) if separate else state
        if mesh is None:
            return quick_jit(step)(state, batch(0))
        devices = make_mesh(**mesh)
        shardings = state_shardings(devices, state)
        step = quick_jit(with_mesh(devices, step), out_shardings=(shardings, replicated_sharding(devices)))
        return step(jax.device_put(state, shardings), put_batch(devices, batch(0)))

    expected, expected_metrics = run(separate=False, joined=False)
    for separate, unroll in ((True, 3), (False, 1)):
        state, metrics = run(separate, unroll=unroll)
        same((stack_layers(state.opt_state), metrics), (expected.opt_state, expected_metrics))
        # Adam divides the gradients of biases that are zero by theory by their rounding errors.
        kernels = [
            np.concatenate([leaf.ravel() for path, leaf in tree if "kernel" in str(path)])
            for tree in map(jax.tree_util.tree_leaves_with_path, (stack_layers(state.parameters), expected.parameters))
        ]
        same(*kernels)


def without_joined(graph, parameters):
    """Returns the graph of a model whose sublayers do not take joined tokens."""
    model = nnx.merge(graph, parameters)
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "takes_joined"):
            module.takes_joined = None
    return nnx.split(model)[0]


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

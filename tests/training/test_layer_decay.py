"""Layer-wise decay multiplies the update of each layer by a power of the decay, and changes nothing else."""

import jax
import numpy as np
import pytest
from flax import nnx
from steps import batch, same, zeros_of
from tiny import SMALL, TINY, make, quick_jit

from vidformers import MODELS, ConfigError, build
from vidformers.parallel.state import unstack_layers
from vidformers.training.layer_decay import layer_numbers, learning_rate_scales
from vidformers.training.optim import make_optimizer
from vidformers.training.step import State, make_step


def shapes(name, **options):
    """Returns the shapes of the parameters of a tiny model."""
    fields = TINY | SMALL.get(name, {}) | options
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build(name, **fields, rngs=nnx.Rngs(0)))))


def at(numbers, path):
    """Returns the number or the numbers that all arrays below a path share."""
    for key in path.split("/"):
        numbers = numbers[int(key) if key.isdecimal() else key]
    first, *others = map(np.asarray, jax.tree.leaves(numbers))
    assert all(np.array_equal(first, other) for other in others), path
    return first.tolist()


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_every_block_of_a_model_has_a_layer_of_its_own(name):
    numbers = layer_numbers(shapes(name))
    stacks = [np.unique(leaf) for leaf in jax.tree.leaves(numbers) if np.ndim(leaf)]
    used = np.unique(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(numbers)]))
    assert used.tolist() == list(range(used.max() + 1)), "no layer is left out"
    assert stacks and all(1 <= stack[0] and stack[-1] < used.max() for stack in stacks)
    assert at(numbers, "head") == used.max()
    embedding = "embeddings/0" if name in ("swin", "cvt") else "embedding"
    assert at(numbers, f"encoder/{'encoder/' * (name == 'vtn')}{embedding}") == 0


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, options, expected",
    [
        (
            "mevit",
            dict(depth=4, motion_blocks=2, class_blocks=1),
            {
                "encoder/class_token": 0,
                "encoder/stages/0/layers": [1, 2],
                "encoder/stages/1/layers": [3, 4],
                "encoder/stages/2/layers": [5],
                "encoder/norm": 6,
                "head": 6,
            },
        ),
        (
            "havit",
            dict(depth=3, dictionary=3, dictionary_per="model", class_blocks=1),
            {"encoder/stages/0/layers": [1, 2, 3], "encoder/stages/0/dictionary": 3, "encoder/stages/1/layers": [4]},
        ),
        (
            "cvt",
            {},
            {
                "encoder/stages/0/layers": [1],
                "encoder/embeddings/1": 1,
                "encoder/stages/1/layers": [2],
                "encoder/embeddings/2": 2,
                "encoder/stages/2/layers": [3, 4],
                "encoder/norm": 5,
            },
        ),
        (
            "vtn",
            dict(depth=2, temporal_depth=3),
            {
                "encoder/encoder/stages/0/layers": [1, 2],
                "encoder/encoder/norm": 3,
                "readout/stages/0/layers": [3, 4, 5],
                "readout/class_token": 6,
                "readout/head": 6,
                "head": 6,
            },
        ),
        (
            "vtn",
            dict(backbone="resnet", depths=(1, 2), stem=8, image_size=32, temporal_depth=1),
            {
                "encoder/encoder/stem": 0,
                "encoder/encoder/blocks/0": 1,
                "encoder/encoder/blocks/2": 3,
                "encoder/encoder/out": 4,
                "readout/stages/0/layers": [4],
                "head": 5,
            },
        ),
        (
            "stat",
            {},
            {"encoder/stages/0/layers": [1], "encoder/stages/1/layers": [2], "encoder/stages/2/layers": [3]},
        ),
    ],
    ids=str,
)
def test_layers_are_counted_as_documented(name, options, expected):
    numbers = layer_numbers(shapes(name, **options))
    assert {path: at(numbers, path) for path in expected} == expected


@pytest.mark.quick
@pytest.mark.parametrize("name", ["mevit", "vtn", "stat"])
def test_separate_layers_have_the_factors_of_stacked_ones(name):
    parameters = make(name)[1]
    stacked = jax.tree.map(
        lambda scale, leaf: np.broadcast_to(scale, leaf.shape), learning_rate_scales(parameters, 0.5), parameters
    )
    separate = unstack_layers(parameters)
    scales = learning_rate_scales(separate, 0.5)
    jax.tree.map(
        lambda scale, leaf, expected: np.testing.assert_array_equal(np.broadcast_to(scale, leaf.shape), expected),
        scales,
        separate,
        unstack_layers(stacked),
    )


@pytest.mark.parametrize(
    "optimizer", [dict(name="adamw", weight_decay=0.1), dict(name="sgd", weight_decay=0.1)], ids=str
)
def test_the_update_of_a_layer_is_scaled_and_the_state_of_the_optimizer_is_not(optimizer):
    graph, parameters = make("mevit", depth=2)
    optimizer, schedule = make_optimizer(10, 1, lr=0.1, schedule="constant", **optimizer)
    state = State(np.int32(5), parameters, zeros_of(optimizer, parameters), ())
    new, decayed = (
        quick_jit(make_step(graph, optimizer, schedule, seed=0, layer_decay=decay))(state, batch(0))[0]
        for decay in (1, 0.5)
    )
    scales = learning_rate_scales(parameters, 0.5)
    assert {float(scale) for leaf in jax.tree.leaves(scales) for scale in np.ravel(leaf)} >= {1, 0.5, 0.25}
    expected = jax.tree.map(lambda old, new, scale: old + (new - old) * scale, parameters, new.parameters, scales)
    same(decayed.parameters, expected, rtol=1e-5, atol=1e-6)
    same(decayed.opt_state, new.opt_state)


@pytest.mark.quick
@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=rf"^optim\.layer_decay={decay} must be above 0 and at most 1"):
        make_optimizer(10, 1, layer_decay=decay)

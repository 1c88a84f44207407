"""The mesh, and how the training state is sharded on it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from steps import SGD, training
from tiny import maker

from vidformers import MODELS, ConfigError
from vidformers.parallel.batch import batch_sharding
from vidformers.parallel.mesh import make_mesh
from vidformers.parallel.state import (
    convert_layers,
    stack_layers,
    state_shardings,
    unstack_layers,
    with_shardings,
)
from vidformers.training.optim import make_optimizer
from vidformers.training.step import initial_state


@pytest.mark.parametrize("name", MODELS)
def test_the_state_is_split_over_fsdp_and_never_along_layers(name):
    """By shapes alone, at the width of ViT-Ti, or of a first stage of 48."""
    mesh = make_mesh(data=2, fsdp=4)
    optimizer, _ = make_optimizer(10, 1, **{**SGD, "name": "adamw"})
    wide = (
        dict(num_classes=400, width=48, heads=4)
        if MODELS[name].traits.defaults
        else dict(num_classes=400, width=192, heads=3, depth=4)
    )
    make_model = maker(name, **wide)
    abstract = jax.eval_shape(partial(initial_state, make_model, optimizer, 0.9, 0))
    shardings = state_shardings(mesh, abstract)
    total_size = shard_size = 0
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        shard = sharding.shard_shape(leaf.shape)
        total_size, shard_size = total_size + leaf.size, shard_size + np.prod(shard, dtype=int)
        if "'layers'" in jax.tree_util.keystr(path):
            assert shard[0] == leaf.shape[0], "a scan over the layers needs all of them on each device"
        if "'kernel'" in jax.tree_util.keystr(path):
            assert np.prod(shard) * 4 == leaf.size
    assert shard_size <= 1.05 * total_size / 4
    specs = [jax.tree.map(lambda s: s.spec, tree) for tree in (shardings.parameters, shardings.ema)]
    assert specs[0] == specs[1], "the EMA is sharded like the parameters"


@pytest.mark.quick
def test_an_array_whose_layer_axis_alone_is_divisible_is_not_split():
    mesh = make_mesh(data=2, fsdp=4)
    leaf = jax.ShapeDtypeStruct((8, 6, 5), jnp.float32)
    shardings = state_shardings(mesh, {"layers": {"kernel": leaf}, "kernel": leaf})
    assert shardings["layers"]["kernel"].spec == P() and shardings["kernel"].spec == P("fsdp", None, None)


@pytest.mark.quick
def test_layers_are_stacked_or_separate_with_equal_values_and_shardings():
    mesh = make_mesh(data=2, fsdp=4)
    stacked = training("vit")[1]
    abstract = [with_shardings(mesh, jax.eval_shape(function, stacked)) for function in (stack_layers, unstack_layers)]
    placed = jax.device_put(stacked, jax.tree.map(lambda leaf: leaf.sharding, abstract[0]))
    separate = convert_layers(placed, abstract[1])
    layers = separate.parameters["encoder"]["stages"][0]["layers"]["sublayers"][1]["wide"]["kernel"]
    assert [layer.sharding.spec for layer in layers] == [P(None, "fsdp")] * 2
    assert convert_layers(separate, abstract[1]) is separate
    again = convert_layers(separate, abstract[0])
    jax.tree.map(np.testing.assert_array_equal, again, stacked)
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == jax.tree.map(lambda leaf: leaf.sharding, abstract[0])


def test_a_device_holds_its_share_of_the_bytes():
    mesh = make_mesh(data=2, fsdp=4)
    parameters = training("vit")[1].parameters
    parameters = jax.device_put(parameters, state_shardings(mesh, jax.eval_shape(lambda: parameters)))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
    for device in mesh.devices.flat:
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(parameters)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held <= 1.05 * total / 4


@pytest.mark.quick
def test_a_mesh_covers_the_devices_or_is_refused_in_a_sentence():
    assert make_mesh().shape == {"data": 8, "fsdp": 1, "context": 1}
    assert make_mesh(fsdp=4).shape == {"data": 2, "fsdp": 4, "context": 1}
    assert make_mesh(fsdp=2, context=2).shape == {"data": 2, "fsdp": 2, "context": 2}
    assert batch_sharding(make_mesh(fsdp=4), "video", 5).spec == P(("data", "fsdp"))
    with_context = make_mesh(context=4)
    assert batch_sharding(with_context, "video", 5).spec == P(("data", "fsdp"), "context")
    assert batch_sharding(with_context, "video", 6).spec == P(("data", "fsdp"), None, "context")
    assert batch_sharding(with_context, "index", 3).spec == P(("data", "fsdp"), None, "context")
    assert batch_sharding(with_context, "label", 1).spec == P(("data", "fsdp"))
    for mesh in ((3, 1, 1), (-1, 3, 1), (8, 2, 1), (0, 1, 1), (-1, 0, 1), (-1, 16, 1), (-1, 1, 3), (-1, 1, 0)):
        with pytest.raises(ConfigError, match=r"^mesh\.data=.* mesh\.fsdp=.* mesh\.context=.*\.$"):
            make_mesh(**dict(zip(("data", "fsdp", "context"), mesh, strict=True)))


@pytest.mark.quick
def test_an_axis_of_the_mesh_may_be_a_part_of_an_axis_of_the_devices(monkeypatch):
    """`jax.make_mesh` refuses this on most TPUs, such as (2, 4, 2) on a slice of 4 x 4."""

    def refuse(*args, **kwargs):
        raise NotImplementedError("set allow_split_physical_axes to True")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh(data=2, fsdp=2, context=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2}
    assert {device.id for device in mesh.devices.flat} == set(range(8))

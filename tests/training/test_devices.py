"""Training and evaluation on eight devices equal those on one, and exchange no more than is recorded.

tests/goldens/collectives.json records for each model and mesh how many collectives a training step issues, and how many
bytes they return on one device. After a change of a model, or for a new one, this command records it anew:

    RECORD=1 python -m pytest tests/training/test_devices.py -k equal_one
"""

import json
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from steps import batch, same, training, two_steps
from tiny import QUICK, make, quick_jit

from vidformers import MODELS
from vidformers.attention.core import SelfAttention
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.layers.tokens import Tokens
from vidformers.parallel.account import collectives
from vidformers.parallel.activations import shard_activations
from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.state import replicated_sharding, state_shardings
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, Evaluator
from vidformers.training.step import State

MESHES = {
    "data": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "all": dict(data=2, fsdp=2, context=2),
    "context": dict(data=2, context=4),
}
CASES = [
    ("vit", "data"),
    ("vit", "fsdp"),
    ("mevit", "context"),
    ("vtn:resnet", "all"),
    *((name, "fsdp" if entry.traits.frames_on_one_device else "all") for name, entry in MODELS.items()),
]
SAVED = "vit"  # how a state is saved depends on the ranks and shardings of its arrays alone
GOLDEN = Path(__file__).parents[1] / "goldens" / "collectives.json"


def abstract(tree, shardings):
    """Returns the shapes, dtypes and shardings of arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


@pytest.mark.parametrize("name, kind", CASES)
def test_eight_devices_equal_one(name, kind, tmp_path):
    """Two steps. Between them, the state of one model comes from a checkpoint that one device has saved."""
    mesh = make_mesh(**MESHES[kind])
    step, state = training(name)
    shardings = state_shardings(mesh, state)
    step = quick_jit(with_mesh(mesh, step), out_shardings=(shardings, replicated_sharding(mesh)))
    step = step.lower(abstract(state, shardings), put_batch(mesh, batch(0))).compile()
    assert_no_more_than_recorded(f"{name} {kind}", collectives(step.as_text()))
    state = jax.device_put(state, shardings)
    for seed, (expected, expected_metrics) in enumerate(two_steps(name)):
        rows = put_batch(mesh, batch(seed))
        shards = {str(shard.index) for shard in rows["video"].addressable_shards}
        assert len(shards) == 8, "each device has a part of the video of its own"
        state, metrics = step(state, rows)
        same((state, metrics), (expected, expected_metrics))
        if name == SAVED and seed == 0:
            state = saved_and_restored(expected, shardings, tmp_path)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


@pytest.mark.parametrize("mesh", [{}, dict(fsdp=2), dict(data=2, context=2)], ids=["one", "fsdp", "context"])
def test_a_checkpoint_of_eight_devices_continues_on_fewer(mesh, tmp_path):
    """The other way round as above, on 1, 2 and 4 devices."""
    step, _ = training(SAVED)
    (state, _), expected = two_steps(SAVED)
    state = jax.device_put(state, state_shardings(make_mesh(**MESHES["all"]), state))
    mesh = make_mesh(**mesh, devices=jax.devices()[: math.prod(mesh.values())])
    shardings = state_shardings(mesh, state)
    state = saved_and_restored(state, shardings, tmp_path)
    step = quick_jit(with_mesh(mesh, step), out_shardings=(shardings, replicated_sharding(mesh)))
    same(step(state, put_batch(mesh, batch(1))), expected)


def saved_and_restored(state, shardings, folder):
    """Returns the state from a checkpoint of it, with other shardings and the same values."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, jax.tree.map(jnp.asarray, state), {})
        checkpoints.wait()
        restored, _, _ = checkpoints.restore(abstract(state, shardings))
    same(restored, state, rtol=0, atol=0)
    return restored


def test_a_checkpoint_keeps_arrays_of_every_rank_and_sharding_that_a_model_has(tmp_path):
    mesh, arrays = make_mesh(**MESHES["fsdp"]), {}
    for name in MODELS:
        parameters = make(name)[1]
        shardings = jax.tree.leaves(state_shardings(mesh, parameters))
        for leaf, sharding in zip(jax.tree.leaves(parameters), shardings, strict=True):
            arrays.setdefault(f"{leaf.ndim} {sharding.spec}", (leaf, sharding))
    assert {array.ndim for array, _ in arrays.values()} >= {1, 2, 3, 4} and len(arrays) >= 10
    parameters = {name: jax.device_put(*array) for name, array in arrays.items()}
    state = State(jax.device_put(np.int32(1), replicated_sharding(mesh)), parameters, (), ())
    saved_and_restored(state, jax.tree.map(lambda leaf: leaf.sharding, state), tmp_path)


def assert_no_more_than_recorded(case, actual):
    """Asserts that a step issues at most the recorded collectives, in number and in bytes.

    Unintended collectives are mostly all-gathers of activations, where the parameters should have been gathered.
    """
    record = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("RECORD"):
        record |= {"jax": jax.__version__, case: actual}
        GOLDEN.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
        return
    assert case in record, f"{GOLDEN} has no entry {case!r}. Record it: {record_command()}"
    if record["jax"] != jax.__version__:  # the collectives depend on the version of the compiler
        return
    for kind, amount in actual.items():
        most = record[case].get(kind, {"count": 0, "bytes": 0})
        assert amount["count"] <= most["count"] and amount["bytes"] <= most["bytes"], (
            f"{case}: {kind} {amount}, recorded are {most}. If this is intended, record it: {record_command()}"
        )


def record_command() -> str:
    return __doc__.strip().splitlines()[-1].strip()


@pytest.mark.quick
def test_the_record_names_the_cases_and_registered_models_alone():
    record = json.loads(GOLDEN.read_text())
    cases = {f"{name} {kind}" for name, kind in CASES}
    assert record.keys() - {"jax"} == cases, f"Delete what is too much, and record what lacks: {record_command()}"
    assert {name.partition(":")[0] for name, _ in CASES} == set(MODELS)
    with pytest.raises(AssertionError, match=r"no entry 'absent all'.* RECORD=1 python -m pytest .*test_devices"):
        assert_no_more_than_recorded("absent all", {})


@pytest.mark.parametrize(
    "scheme, options",
    [
        (Time(), dict(class_keys=False, class_queries=False)),
        (Time(), {}),
        (Motion(2), {}),
        (Motion(3), {}),
        (Motion(2), dict(class_keys=False, class_queries=False, kernel="cosine", cosine_index="t")),
    ],
    ids=str,
)
def test_groups_that_are_not_divisible_are_padded_and_stay_sharded(scheme, options):
    """49, 16 and 9 groups on 4 devices. Patches are all-gathered only where 9 groups would become 12."""
    rng = np.random.default_rng(0)
    graph, parameters = nnx.split(SelfAttention(scheme, 8, 2, **options, rngs=nnx.Rngs(0)))
    patches, class_token = (rng.normal(size=(2, *shape, 8)).astype(np.float32) for shape in ((4, 49), (1,)))
    tokens = Tokens(patches, class_token, (4, 7, 7))
    weights = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tokens)

    def loss(parameters, tokens):
        out = nnx.merge(graph, parameters)(tokens.replace(patches=shard_activations(tokens.patches)))
        return sum(jax.tree.leaves(jax.tree.map(lambda x, weight: (x * weight).sum(), out, weights)))

    mesh = make_mesh(data=2, context=4)
    gradient = jax.value_and_grad(loss, (0, 1))
    patches, class_token = (NamedSharding(mesh, P("data", axis)) for axis in ("context", None))
    shardings = tokens.replace(patches=patches, class_tokens=class_token)
    sharded_tokens = jax.device_put(tokens, shardings)
    sharded = quick_jit(with_mesh(mesh, gradient)).lower(parameters, sharded_tokens).compile()
    same(sharded(parameters, sharded_tokens), quick_jit(gradient)(parameters, tokens))
    issued = collectives(sharded.as_text())
    is_gathered = issued.get("all-gather", {"bytes": 0})["bytes"] >= tokens.patches.nbytes // 2
    assert is_gathered == (scheme == Motion(3)) and (is_gathered or "all-to-all" in issued), issued


@pytest.mark.parametrize("name", ["vit", "mevit", "vtn"])  # the training steps above run all models
def test_an_evaluation_on_eight_devices_equals_one(name):
    graph, parameters = make(name)
    rows = batch(0, mask=[1] * 13 + [0] * 3)
    rows["video"] = rows["video"][:, None]
    protocol = EvalProtocol(clips=1, crops=1, batch_size=16)
    results = []
    for mesh in (make_mesh(context=2), make_mesh(devices=jax.devices()[:1])):
        step = Evaluator(graph, mesh, replicated_sharding(mesh), protocol).step
        put = put_batch(mesh, rows)
        results.append(step.lower(parameters, put).compile(compiler_options=QUICK)(parameters, put))
    same(*results)
    assert results[0]["mask"].sum() == 13

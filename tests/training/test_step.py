"""One step of training: its loss and update, which neither devices nor micro-batches change."""

import json
import os
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import clips, make, maker, quick_jit

from benchmarks.collectives import collectives
from vidformers import MODELS, ConfigError
from vidformers.attention.core import SelfAttention
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.layers.tokens import Tokens
from vidformers.parallel.activations import constrain
from vidformers.parallel.batch import batch_sharding, put_batch
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.state import replicated_sharding, state_shardings
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, Evaluator
from vidformers.training.optim import decay_mask, duration_in_steps, make_optimizer
from vidformers.training.step import State, initial_state, make_step

# SGD: Adam would divide the rounding of a gradient that is zero in truth (key biases) by its own size.
SGD = dict(name="sgd", lr=0.05, weight_decay=1e-3, schedule="constant", ema_decay=0.75)
SMOOTHING = 0.2
CLOSE = dict(rtol=1e-4, atol=1e-5)


def batch(seed: int, rows: int = 16, mask=None):
    """Noise and labels; the pixels are floats, which unlike bytes can be told to be NaN."""
    rng = np.random.default_rng(seed)
    return {
        "video": (clips(rows, seed=seed) / 127.5 - 1).astype(np.float32),
        "label": rng.integers(0, 5, rows).astype(np.int32),
        "mask": np.ones(rows, np.float32) if mask is None else np.float32(mask),
    }


@cache
def training(name, accumulate=1):
    """(step not compiled, state of random parameters)."""
    graph, parameters = make(name)
    optimizer, rate = make_optimizer(10, 1, **SGD)
    step = make_step(
        graph, optimizer, rate, seed=0, accumulate=accumulate, label_smoothing=SMOOTHING, ema_decay=SGD["ema_decay"]
    )
    return step, State(
        jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), jax.tree.map(np.copy, parameters)
    )


@cache
def compiled_step(name, **options):
    return quick_jit(training(name, **options)[0])


@cache
def two_steps(name):
    """The states and figures of two steps on one device."""
    state, trace = training(name)[1], []
    for seed in range(2):
        state, figures = compiled_step(name)(state, batch(seed))
        trace.append((state, figures))
    return trace


def same(found, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **(tolerance or CLOSE)), found, expected)


def test_micro_batches_equal_one_batch():
    state, figures = compiled_step("vit", accumulate=2)(training("vit")[1], batch(0))
    same((state, figures), two_steps("vit")[0])


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


def test_the_loss_is_the_mean_over_the_rows_that_count():
    """Half of the rows masked, or the other half written twice: the same mean."""
    mask = np.arange(16) < 8
    rows = batch(0, mask=mask)
    found = compiled_step("vit")(training("vit")[1], rows)[1]
    twice = {key: np.concatenate([value[:8]] * 2) for key, value in rows.items()}
    expected = compiled_step("vit")(training("vit")[1], twice)[1]
    same(
        (found["loss"], found["top1"], found["gradient_norm"]),
        (expected["loss"], expected["top1"], expected["gradient_norm"]),
    )


def test_label_smoothing_mixes_the_labels_with_the_uniform_distribution():
    graph, parameters = make("vit")
    rows = batch(0)
    logits = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, rows["video"])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    own = log_p[np.arange(16), rows["label"]]
    expected = -np.mean((1 - SMOOTHING) * own + SMOOTHING * log_p.mean(1))
    same(two_steps("vit")[0][1]["loss"], expected)
    assert abs(expected + own.mean()) > 1e-2, "smoothing shows"


def test_the_average_follows_its_formula_and_is_what_evaluation_uses():
    average = training("vit")[1].parameters
    for state, _ in two_steps("vit"):
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, state.parameters)
        same(state.ema, average, rtol=1e-5, atol=1e-6)
        assert state.eval_parameters is state.ema
    assert state._replace(ema=()).eval_parameters is state.parameters
    assert state.step == 2


# Optimisers and schedules


def test_decay_falls_on_kernels_alone():
    parameters = make("mevit")[1]
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(parameters, "kernels"))
    assert {jax.tree_util.keystr(path).split("'")[-2] for path, decayed in mask if decayed} == {"kernel"}
    spared = {jax.tree_util.keystr(path).split("'")[-2] for path, decayed in mask if not decayed}
    assert spared == {"bias", "scale", "class_token", "space", "time"}
    assert all(jax.tree.leaves(decay_mask(parameters, "all")))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_a_gradient_only_what_decays_moves(name):
    optimizer, _ = make_optimizer(10, 1, name=name, lr=0.1, weight_decay=0.5, schedule="constant")
    parameters = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    expected = {"kernel": 0.95 * np.ones((2, 2)), "bias": np.ones(2)}
    same(optax.apply_updates(parameters, updates), expected, rtol=1e-6)


def test_the_cosine_warms_up_from_zero_and_ends_at_zero():
    _, rate = make_optimizer(110, 10, lr=0.4, warmup_epochs=1.0, schedule="cosine")
    same([rate(step) for step in (0, 5, 10, 60, 110)], [0, 0.2, 0.4, 0.2, 0], rtol=1e-5, atol=1e-7)


def test_steps_drop_at_their_epochs_counted_from_the_start():
    _, rate = make_optimizer(150, 10, lr=1.0, warmup_steps=20, schedule="step", drop_epochs=(11.0, 14.0))
    rates = {0: 0, 20: 1, 109: 1, 110: 0.1, 111: 0.1, 139: 0.1, 140: 0.01, 141: 0.01}
    same({step: rate(step) for step in rates}, rates, rtol=1e-5)


def test_a_constant_rate_needs_no_warm_up():
    _, rate = make_optimizer(10, 1, lr=0.3, schedule="constant")
    same([rate(step) for step in (0, 9)], [0.3, 0.3], rtol=1e-6)


def test_clipping_bounds_the_whole_gradient():
    optimizer, _ = make_optimizer(
        10, 1, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=2.0
    )
    gradients = {"a": jnp.full(8, 3.0), "b": jnp.full(8, 4.0)}
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    same(optax.tree.norm(updates), 2.0)


def test_a_duration_has_one_unit():
    assert duration_in_steps("optim.warmup", 7, None, 10) == 7
    assert duration_in_steps("optim.warmup", None, 1.5, 10) == 15
    assert duration_in_steps("optim.warmup", None, None, 10) is None
    with pytest.raises(ConfigError, match="optim.warmup_steps=7 and optim.warmup_epochs=1"):
        duration_in_steps("optim.warmup", 7, 1.0, 10)
    with pytest.raises(ConfigError, match="optim.warmup_steps"):
        duration_in_steps("optim.warmup", -1, None, 10)


@pytest.mark.parametrize(
    "options, field",
    [
        (dict(name="adam"), "optim.name='adam'"),
        (dict(schedule="linear"), "optim.schedule='linear'"),
        (dict(lr=0.0), "optim.lr=0.0"),
        (dict(decay="none"), "optim.decay='none'"),
        (dict(b1=1.0), "optim.b1=1.0"),
        (dict(ema_decay=1.0), "optim.ema_decay=1.0"),
        (dict(clip_norm=0.0), "optim.clip_norm=0.0"),
        (dict(weight_decay=-1.0), "optim.weight_decay=-1.0"),
        (dict(warmup_steps=10), "warm-up of 10 steps"),
    ],
)
def test_an_optimiser_that_cannot_work_is_refused(options, field):
    with pytest.raises(ConfigError, match=field):
        make_optimizer(10, 1, **options)


# Devices


SAVED = ("vit", "vtn", "stat")  # how a state is saved does not depend on the model, and takes long
MESHES = {
    "data": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "all": dict(data=2, fsdp=2, context=2),
    "context": dict(data=2, context=4),
}
EXCHANGED = Path(__file__).parents[1] / "goldens" / "collectives.json"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("vit", "data"),
        ("vit", "fsdp"),
        ("mevit", "context"),
        ("vtn:resnet", "all"),
        *((name, "fsdp" if entry.traits.whole_clips else "all") for name, entry in MODELS.items()),
    ],
)
def test_eight_devices_equal_one_across_a_checkpoint(name, kind, tmp_path):
    mesh = make_mesh(**MESHES[kind])
    step, state = training(name)
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: state),
        shardings,
    )
    state = jax.device_put(state, shardings)
    step = quick_jit(with_mesh(mesh, step), out_shardings=(shardings, replicated_sharding(mesh)))
    step = step.lower(abstract, put_batch(mesh, batch(0))).compile()
    no_more_than_known(f"{name} {kind}", collectives(step))
    for seed, (expected, expected_figures) in enumerate(two_steps(name)):
        rows = put_batch(mesh, batch(seed))
        assert len({str(shard.index) for shard in rows["video"].addressable_shards}) == 8, "none twice"
        state, figures = step(state, rows)
        same((state, figures), (expected, expected_figures))
        if name not in SAVED:
            continue
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(seed + 1, state, {})
            checkpoints.wait()
            saved, (state, _, _) = state, checkpoints.restore(abstract)
        same(state, saved, rtol=0, atol=0)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings


def no_more_than_known(case, found):
    """Devices exchange what the record says, in number and bytes, or less; RECORD=1 writes the record anew.

    What comes unasked for is mostly a gathering of activations, where parameters should have been gathered.
    """
    record = json.loads(EXCHANGED.read_text()) if EXCHANGED.exists() else {}
    if os.environ.get("RECORD"):
        record |= {"jax": jax.__version__, case: found}
        EXCHANGED.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    elif record["jax"] == jax.__version__:  # other versions of the compiler exchange otherwise
        for kind, amount in found.items():
            most = record[case].get(kind, {"count": 0, "bytes": 0})
            assert amount["count"] <= most["count"] and amount["bytes"] <= most["bytes"], (case, kind, amount, most)


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
def test_groups_that_do_not_divide_are_filled_up_and_part_all_the_same(scheme, options):
    """49, 16 and 9 groups over 4 devices: nothing of patches is gathered but where 9 would become 12."""
    rng = np.random.default_rng(0)
    graph, parameters = nnx.split(SelfAttention(scheme, 8, 2, **options, rngs=nnx.Rngs(0)))
    tokens = Tokens(*(rng.normal(size=(2, *shape, 8)).astype(np.float32) for shape in ((4, 7, 7), (1,))))
    weights = Tokens(*(rng.normal(size=x.shape).astype(np.float32) for x in tokens))

    def loss(parameters, tokens):
        out = nnx.merge(graph, parameters)(Tokens(constrain(tokens.patches), tokens.class_tokens))
        return sum((x * weight).sum() for x, weight in zip(out, weights, strict=True))

    mesh = make_mesh(data=2, context=4)
    gradient = jax.value_and_grad(loss, (0, 1))
    laid = jax.device_put(tokens, Tokens(*(NamedSharding(mesh, P("data", axis)) for axis in ("context", None))))
    spread_out = quick_jit(with_mesh(mesh, gradient)).lower(parameters, laid).compile()
    same(spread_out(parameters, laid), quick_jit(gradient)(parameters, tokens))
    found = collectives(spread_out)
    gathered = found.get("all-gather", {"bytes": 0})["bytes"] >= tokens.patches.nbytes // 2
    assert gathered == (scheme == Motion(3)) and (gathered or "all-to-all" in found), found


@pytest.mark.parametrize("name", ["vit", "mevit", "vtn"])  # of its forward pass, training shows the rest
def test_an_evaluation_on_eight_devices_equals_one(name):
    graph, parameters = make(name)
    rows = batch(0, mask=[1] * 13 + [0] * 3)
    rows["video"] = rows["video"][:, None]
    protocol = EvalProtocol(clips=1, crops=1, batch_size=16)
    found, expected = (
        Evaluator(graph, mesh, replicated_sharding(mesh), protocol).step(parameters, put_batch(mesh, rows))
        for mesh in (make_mesh(context=2), make_mesh(devices=jax.devices()[:1]))
    )
    same(found, expected)
    assert found.count == 13 and found.confusion.sum() == 13


@pytest.mark.parametrize("name", MODELS)
def test_the_state_is_split_over_fsdp_and_never_along_layers(name):
    """By shape alone, at the width of ViT-Ti, or of a first stage of 48."""
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
    whole = part = 0
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        share = sharding.shard_shape(leaf.shape)
        whole, part = whole + leaf.size, part + np.prod(share, dtype=int)
        if "'layers'" in jax.tree_util.keystr(path):
            assert share[0] == leaf.shape[0], "the axis that a scan walks along"
        if "'kernel'" in jax.tree_util.keystr(path):
            assert np.prod(share) * 4 == leaf.size
    assert part <= 1.05 * whole / 4
    kinds = [jax.tree.map(lambda s: s.spec, tree) for tree in (shardings.parameters, shardings.ema)]
    assert kinds[0] == kinds[1], "averages lie where their parameters do"


def test_where_only_the_layers_divide_nothing_is_split():
    mesh = make_mesh(data=2, fsdp=4)
    leaf = jax.ShapeDtypeStruct((8, 6, 5), jnp.float32)
    found = state_shardings(mesh, {"layers": {"kernel": leaf}, "kernel": leaf})
    assert found["layers"]["kernel"].spec == P() and found["kernel"].spec == P("fsdp", None, None)


def test_a_device_holds_its_share_of_the_bytes():
    mesh = make_mesh(data=2, fsdp=4)
    state = training("vit")[1]
    state = jax.device_put(state, state_shardings(mesh, jax.eval_shape(lambda: state)))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.parameters))
    for device in mesh.devices.flat:
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state.parameters)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held <= 1.05 * whole / 4


def test_a_mesh_covers_the_devices_or_is_refused_in_a_sentence():
    assert make_mesh().shape == {"data": 8, "fsdp": 1, "context": 1}
    assert make_mesh(fsdp=4).shape == {"data": 2, "fsdp": 4, "context": 1}
    assert make_mesh(fsdp=2, context=2).shape == {"data": 2, "fsdp": 2, "context": 2}
    assert batch_sharding(make_mesh(fsdp=4), "video", 5).spec == P(("data", "fsdp"))
    parted = make_mesh(context=4)
    assert batch_sharding(parted, "video", 5).spec == P(("data", "fsdp"), "context")
    assert batch_sharding(parted, "video", 6).spec == P(("data", "fsdp"), None, "context")
    assert batch_sharding(parted, "index", 3).spec == P(("data", "fsdp"), None, "context")
    assert batch_sharding(parted, "label", 1).spec == P(("data", "fsdp"))
    for mesh in ((3, 1, 1), (-1, 3, 1), (8, 2, 1), (0, 1, 1), (-1, 0, 1), (-1, 16, 1), (-1, 1, 3), (-1, 1, 0)):
        with pytest.raises(ConfigError, match=r"^mesh\.data=.* mesh\.fsdp=.* mesh\.context=.*\.$"):
            make_mesh(**dict(zip(("data", "fsdp", "context"), mesh, strict=True)))

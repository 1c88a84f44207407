"""All models: size and cost, blindness to the order of frames, gradients, and options that must not change results."""

import ast
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import SMALL, clips, compiled, initial, make, maker, quick_jit

from vidformers import MODELS, ConfigError, build
from vidformers.models.encoder import stage_rngs
from vidformers.models.summary import summarise
from vidformers.parallel.target import traced_for

TWELVE = dict(depth=12, motion_blocks=12, class_blocks=0)  # the baseline of MEViT's Tables 1 and 3
TEMPORAL = {
    "timesformer": ("timesformer", dict()),
    "joint": ("joint", dict()),
    "mevit": ("mevit", dict()),
    "mevit, early class": (
        "mevit",
        dict(class_blocks=0, order="space_motion", temporal_fc=True, class_queries_motion=True),
    ),
    "havit": ("havit", dict()),
    "havit, linear": ("havit", dict(attention="joint", kernel="relu", hybrid="multi_view", class_token="input")),
}
# Models that tell orders apart without a temporal table.
ORDERED = {
    "havit, cosine": ("havit", dict(attention="joint", kernel="cosine")),
    "msca": ("msca", dict()),
    "msca, patches": ("msca", dict(direction="patches", moved="QKV", before=3, after=2, boundary="wrap")),
    "tokenshift": ("tokenshift", dict()),
    "vtn": ("vtn", dict()),
    "vtn, resnet": ("vtn", dict(backbone="resnet", depths=(1, 1), stem=4)),
    "swin": ("swin", dict()),
    "cvt": ("cvt", dict()),
    "stat": ("stat", dict(dictionary=2)),
}
CASES = {"vit": ("vit", dict())} | TEMPORAL | ORDERED
SHUFFLES = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 0, 2, 3])
# Frames in another order are summed in another order. Logits are of size 1.
ROUNDING = dict(rtol=1e-4, atol=1e-5)


def cost(name, **options):
    return summarise(partial(build, name, num_classes=400, **options))


@cache
def probe(name):
    """(f(parameters, video) -> logits, logits in bfloat16, gradients of a mixture of logits; parameters) of a case.

    One program, because most of the time of a test is compilation.
    """
    model, options = CASES[name]
    graph, parameters = make(model, **options)
    low, _ = make(model, dtype="bfloat16", **options)

    def run(parameters, video):
        (_, logits), gradients = jax.value_and_grad(mixture_of_logits, argnums=1, has_aux=True)(
            graph, parameters, video
        )
        return logits, nnx.merge(low, parameters)(video), gradients

    return quick_jit(run), parameters


def mixture_of_logits(graph, parameters, video):
    logits = nnx.merge(graph, parameters)(video)
    return (logits * np.random.default_rng(5).normal(size=logits.shape)).sum(), logits


@cache
def clips_and_results(name):
    """Logits, logits in bfloat16 and gradients for `clips()`."""
    run, parameters = probe(name)
    return run(parameters, clips())


def logits_of(name, video):
    run, parameters = probe(name)
    return np.asarray(run(parameters, video)[0])


def same_trees(found, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), found, expected)


# Size and cost


@pytest.mark.parametrize(
    "frames, gmacs", [(8, (184.8, 185.5, 186.9, 195.9, 229.9)), (16, (369.9, 372.7, 378.6, 414.3, 550.3))]
)
def test_block_size_changes_the_cost_and_not_the_parameters(frames, gmacs):
    rows = [cost("mevit", frames=frames, block_size=m, **TWELVE) for m in (1, 2, 3, 7, 14)]
    assert len({row.params for row in rows}) == len({row.macs_per_view_linear for row in rows}) == 1
    assert [row.macs_per_view / 1e9 for row in rows] == pytest.approx(gmacs, abs=0.05)


def test_parameters_follow_the_formulas():
    d, mlp = 768, 8 * 768**2 + 7 * 768  # an MLP with its norm
    attention = 4 * d**2 + 6 * d
    params = {n: cost("mevit", **{**TWELVE, "motion_blocks": n}).params for n in (0, 2, 4, 8, 12)}
    assert all(params[n] - params[0] == n * attention for n in params)
    assert cost("mevit", temporal_fc=True, **TWELVE).params - params[12] == 12 * (d**2 + d)
    twelve, eleven = (cost("mevit", depth=n, motion_blocks=n - 4, class_blocks=1).params for n in (12, 11))
    assert twelve - eleven == 2 * attention + mlp
    one, two = (cost("mevit", depth=9, class_blocks=n).params for n in (1, 2))
    assert two - one == attention + mlp == 12 * d**2 + 13 * d
    assert cost("vit", size="S").params == 21_819_664


def test_linear_macs_of_attention_are_a_multiple_of_its_parameters():
    tokens, d = 8 * 196 + 8, 768
    expected = 12 * tokens * 12 * d**2 + 8 * 196 * 768 * d + 400 * d
    assert cost("vit").macs_per_view_linear == expected
    assert cost("vit").macs_per_view - expected == 12 * 2 * 8 * 197**2 * d


# Order of frames


@pytest.mark.quick
def test_a_frame_wise_model_is_blind_to_order():
    logits = logits_of("vit", np.stack([clips(1)[0][order] for order in SHUFFLES]))
    same_trees(logits, np.broadcast_to(logits[:1], logits.shape), **ROUNDING)
    assert np.abs(logits - logits_of("vit", clips(seed=1))).max() > 0.1, "but not to the pixels"


@pytest.mark.parametrize("name", [*TEMPORAL, *ORDERED])
def test_a_temporal_model_tells_orders_apart(name):
    logits = logits_of(name, np.stack([clips(1)[0][order] for order in SHUFFLES]))
    for i in range(1, len(SHUFFLES)):
        assert np.abs(logits[i] - logits[0]).max() > 1e-3


@pytest.mark.parametrize("name", TEMPORAL)
def test_without_its_temporal_table_a_model_is_blind_to_order(name):
    run, parameters = probe(name)
    encoder = parameters["encoder"]
    embedding = {**encoder["embedding"], "time": 0 * encoder["embedding"]["time"]}
    shuffled = np.stack([clips(1)[0][order] for order in SHUFFLES])
    logits, *_ = run({**parameters, "encoder": {**encoder, "embedding": embedding}}, shuffled)
    same_trees(logits, np.broadcast_to(logits[:1], logits.shape), **ROUNDING)


@pytest.mark.parametrize("name", CASES)
def test_a_clip_does_not_depend_on_its_batch_mates(name):
    first, second = clips(4), clips(4, seed=1)
    second[2] = first[0]
    same_trees(logits_of(name, first)[0], logits_of(name, second)[2], rtol=1e-5, atol=1e-6)


# Options that must not change the result


SCANNED = dict(depth=3, motion_blocks=2)


def test_scan_equals_unrolled():
    """tests/models/test_papers.py holds plain loops over the layers."""
    forward, parameters = compiled("mevit", **SCANNED)
    expected = forward(parameters, clips())
    same_trees(compiled("mevit", unroll=3, **SCANNED)[0](parameters, clips()), expected, **ROUNDING)


def test_shared_dictionaries_equal_one_a_layer_with_the_same_entries(float64):
    """Their gradient is the sum over the layers, in a rematerialised loop."""
    options = dict(class_token="input", class_blocks=0, dtype="float64")

    def gradients_and_logits(graph, parameters):
        return quick_jit(jax.grad(partial(mixture_of_logits, graph), has_aux=True))(parameters, clips())

    graph, parameters = make("havit", dictionary_per="model", unroll=2, remat="full", **options)
    parameters = jax.tree.map(np.float64, parameters)
    gradients, logits = gradients_and_logits(graph, parameters)
    stage, found = (tree["encoder"]["stages"][0] for tree in (parameters, gradients))
    entries, found = stage.pop("dictionary"), found.pop("dictionary")
    for sublayer, kind in enumerate(("time", "space")):
        stacks = {name: np.stack([entry] * 2) for name, entry in entries[kind].items()}
        stage["layers"]["sublayers"][sublayer]["dictionary"] = stacks
    expected, expected_logits = gradients_and_logits(make("havit", **options)[0], parameters)
    sublayers = expected["encoder"]["stages"][0]["layers"]["sublayers"]
    sums = [jax.tree.map(lambda x: x.sum(0), sublayers[i].pop("dictionary")) for i in range(2)]
    same_trees((found["time"], found["space"], logits), (*sums, expected_logits), rtol=1e-9, atol=1e-12)
    same_trees(gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("remat", ["attention", "dots", "full"])
def test_remat_changes_nothing(remat):
    graph, parameters = make("mevit", remat=remat)
    gradients, logits = quick_jit(jax.grad(partial(mixture_of_logits, graph), has_aux=True))(parameters, clips())
    expected_logits, _, expected = clips_and_results("mevit")
    # Gradients sum over tokens and reach 10.
    same_trees((logits, gradients), (expected_logits, expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(CASES.keys() & MODELS.keys()))
def test_the_layout_for_tpus_computes_the_same(name):
    """Tiles, keys before queries, separate kernels for heads, and a loop over the layers, on the CPU."""
    model, options = CASES[name]
    graph, parameters = make(model, **options)
    with traced_for("tpu"):
        run = quick_jit(jax.grad(partial(mixture_of_logits, graph), has_aux=True))
        gradients, logits = run(parameters, clips())
    expected_logits, _, expected = clips_and_results(name)
    same_trees((logits, gradients), (expected_logits, expected), rtol=1e-3, atol=1e-4)


def split_reached(model, dictionary, path, leaf):
    """(parts of a leaf that a gradient reaches, parts whose gradient is zero by mathematics), lists of arrays."""
    if model == "vtn" and "readout" in path and "'qkv'" in path:
        # Only the class token of the last layer is read. Its query, keys and values have projections of their own.
        (reached, rest), last = split_reached("", dictionary, path, leaf[:-1]), leaf[-1]
        return reached, [*rest, last]
    if model == "cvt" and "'stages'][2]" in path and "'near'][0]" in path:
        return [leaf[:-1]], [leaf[-1]]  # likewise, since this convolution is for the queries of patches
    # A bias that all keys share adds the same to every score of a query, so the softmax cancels it. External keys do
    # not share it. The keys of STAT's stages do not share it either: some are pooled and normalised, others are not.
    if re.search(r"\['qkv'\]\[1\]\['bias'\]|\['stages'\]\[[01]\].*\['near'\]\[1\]\['bias'\]", path):
        return [], [leaf]  # the keys of CvT; in its last stage, the key of the class token skips the convolution
    fused = re.search(r"\['(qkv|kv|kv_global)'\]\['bias'\]", path)
    shared = "'kv'" in path or "'readout'" in path or not dictionary
    if fused and shared and not (model == "stat" and "'stages'" in path):
        *queries, keys, values = np.split(leaf, 3 if fused[1] == "qkv" else 2, axis=-1)
        return [*queries, values], [keys]
    return [leaf], []


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_reaches_every_parameter_of_every_layer(name):
    model, options = CASES[name]
    dictionary = {**SMALL.get(model, {}), **options}.get("dictionary")
    *_, gradients = clips_and_results(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        path, leaf = jax.tree_util.keystr(path), np.abs(leaf)
        reached, zero = split_reached(model, dictionary, path, leaf)
        for array in reached:
            layers = array.reshape(array.shape[0], -1) if "layers" in path else array.reshape(1, -1)
            assert (layers.max(-1) > 1e-4).all(), path
        for array in zero:
            assert array.max() < 1e-4 * max(1, leaf.max()), path
        if "'space'" in path or "'time'" in path:
            assert (leaf.max(-1) > 1e-4).all(), f"every row of {path}"


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_near_float32(name):
    expected, low, _ = clips_and_results(name)
    assert low.dtype == jnp.float32
    # Numbers of eight bits: after some layers, the error is a few per cent of the size of the logits.
    assert np.abs(low - expected).max() < 0.05 * np.abs(expected).max()


def test_timesformer_starts_as_an_image_model():
    """`temporal_fc` after time attention and the temporal table start at zero."""
    start = initial("timesformer")
    encoder = start["encoder"]
    time, space, mlp = (encoder["stages"][0]["layers"]["sublayers"][i] for i in range(3))
    assert not any(leaf.any() for leaf in jax.tree.leaves((time["extra"], encoder["embedding"]["time"])))
    forward, _ = compiled("mevit", motion_blocks=0, class_blocks=0)
    in_space = {**start, "encoder": {**encoder, "stages": {0: {"layers": {"sublayers": {0: space, 1: mlp}}}}}}
    divided, _ = compiled("timesformer")
    same_trees(divided(start, clips()), forward(in_space, clips()), **ROUNDING)


def test_the_default_initialisation_gives_logits_of_moderate_size():
    logits = compiled("mevit")[0](initial("mevit"), clips())
    assert 1e-3 < np.abs(logits).max() < 1


@pytest.mark.parametrize("rates", [dict(dropout=0.3), dict(drop_path=0.3)], ids=["dropout", "drop_path"])
def test_dropout_is_a_function_of_the_key_and_absent_without_one(rates):
    forward, parameters = compiled("mevit", **rates)
    first, again, other = (forward(parameters, clips(), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    expected = compiled("mevit")[0](parameters, clips())
    np.testing.assert_array_equal(forward(parameters, clips()), expected)
    assert np.abs(first - expected).max() > 1e-2


def test_at_rate_zero_a_key_changes_nothing():
    forward, parameters = compiled("mevit")
    same_trees(forward(parameters, clips(), jax.random.key(0)), forward(parameters, clips()), **ROUNDING)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    graph, parameters = make("mevit", depth=3, motion_blocks=2, class_blocks=1, drop_path=0.3)
    keys = jax.random.split(jax.random.key(0), 3)
    rates = [rng.drop_path for rng in stage_rngs(nnx.merge(graph, parameters).encoder.stages, 0.3, keys)]
    assert [len(stage) for stage in rates] == [1, 2, 1]
    np.testing.assert_allclose(np.concatenate(rates), [0, 0.1, 0.2, 0.3], rtol=1e-6)


def test_pixels_are_normalised_on_the_way_in():
    forward, parameters = compiled("vit")
    floats = (clips() / 255 - 0.5).astype(np.float32) / 0.5
    same_trees(forward(parameters, floats), forward(parameters, clips()), **ROUNDING)


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, options, field",
    [
        ("vit", dict(heads=5), "model.heads=5"),
        ("vit", dict(heads=0), "model.heads=0"),
        ("vit", dict(patch_size=15), "model.patch_size=15"),
        ("vit", dict(frames=0), "model.frames=0"),
        ("vit", dict(size="XL"), "model.size='XL'"),
        ("vit", dict(dtype="float16"), "model.dtype='float16'"),
        ("vit", dict(remat="some"), "model.remat='some'"),
        ("vit", dict(unroll=0), "model.unroll=0"),
        ("vit", dict(width=0), "model.width"),
        ("vit", dict(depth=0), "model.depth"),
        ("vit", dict(num_classes=0), "model.num_classes=0"),
        ("vit", dict(dropout=1.0), "model.dropout=1.0"),
        ("vit", dict(drop_path=-0.1), "model.drop_path=-0.1"),
        ("vit", dict(std=(1, 1, 0)), "model.std"),
        ("mevit", dict(motion_blocks=13), "model.motion_blocks=13"),
        ("mevit", dict(block_size=0), "model.block_size=0"),
        ("mevit", dict(class_blocks=-1), "model.class_blocks=-1"),
        ("mevit", dict(order="both"), "model.order='both'"),
        ("mevit", dict(class_queries_motion=True, class_in_motion=False), "model.class_queries_motion"),
        ("wit", dict(), "model.name='wit'"),
    ],
)
def test_a_geometry_that_cannot_work_is_refused_in_one_sentence(name, options, field):
    with pytest.raises(ConfigError) as refusal:
        nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **{"num_classes": 5, **options}))
    sentence = str(refusal.value)
    assert field in sentence and sentence.endswith(".") and "\n" not in sentence


def proposals(sentence):
    """Yields the fields that the end of a message proposes: those with one value together, and each of a list alone."""
    text = re.split(r"[Ss]et ", sentence, maxsplit=1)[1]
    together = {name: ast.literal_eval(value) for name, value in re.findall(r"model\.(\w+)=(\(.*?\)|\d+)", text)}
    if together:
        yield together | ({"depth": sum(together["depths"])} if "depths" in together else {})
    for name, values in re.findall(r"model\.(\w+) to (?:at most )?((?:\d+(?:, | or )?)+)", text):
        yield from ({name: int(value)} for value in re.findall(r"\d+", values))


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, options",
    [
        ("vit", dict(heads=5)),
        ("vit", dict(width=42, heads=12)),
        ("timesformer", dict(patch_size=7)),
        ("joint", dict(image_size=30)),
        ("joint", dict(patch_frames=3)),
        ("mevit", dict(motion_blocks=7)),
        ("msca", dict(before=3, after=3)),
        ("vit", dict(frames=2**19)),
        ("swin", dict(depth=4)),
        ("swin", dict(depths=(1, 3), depth=4)),
        ("swin", dict(patch_size=5)),
        ("cvt", dict(depth=3)),
        ("stat", dict(depth=3)),
        ("stat", dict(image_size=36)),
        ("stat", dict(image_size=40)),
        ("stat", dict(stem_convs=1, patch_size=4, heads=1)),
    ],
)
def test_a_combination_that_is_refused_is_answered_with_ones_that_work(name, options):
    def build_shapes(**changes):
        nnx.eval_shape(lambda: maker(name, **{**options, **changes})(rngs=nnx.Rngs(0)))

    with pytest.raises(ConfigError) as refusal:
        build_shapes()
    found = list(proposals(str(refusal.value)))
    assert found
    for changes in found:
        build_shapes(**changes)


def test_a_clip_of_another_shape_is_refused():
    graph, parameters = make("vit")
    with pytest.raises(ConfigError, match="clips of shape"):
        jax.eval_shape(lambda p, x: nnx.merge(graph, p)(x), parameters, clips(1, frames=3))

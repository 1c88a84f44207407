"""The relevance of patches, compared with the model's logits, its masked form, expected keys and the papers."""

from functools import cache
from operator import itemgetter

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from schemes import EXAMPLES, PATCH, SCHEMES, scheme_model
from tiny import TINY, clips, make, quick_jit, randomise

from vidformers import MODELS, ConfigError
from vidformers.inference.clip import Clip
from vidformers.inference.explain.explainer import Explanation, draw_beside
from vidformers.inference.explain.passes import ModelPass
from vidformers.inference.explain.pictures import draw_strip
from vidformers.inference.explain.propagate import propagate
from vidformers.inference.explain.relevance import relevance
from vidformers.parallel.target import traced_for

ENTRIES = {f"scheme {entry.name}": entry for entry in [*SCHEMES.values(), *EXAMPLES]}
# Few layers, since most of the time is compilation. A second layer is there where only the patches of a first one mix.
OPTIONS = {
    "timesformer": ("timesformer", dict(depth=1)),
    "mevit": ("mevit", dict(depth=2, motion_blocks=1, class_blocks=1)),
    "havit": ("havit", dict(class_blocks=1, dictionary_per="model")),
    "cosine": ("havit", dict(attention="joint", kernel="cosine", depth=1, class_blocks=1)),
    "two_views": (
        "havit",
        dict(hybrid="multi_view", external_mlp=True, class_token="input", depth=1, class_blocks=1),
    ),
    "shifted_patches": ("msca", dict(direction="patches", moved="QV")),
    # Two stages over frames, since the windows differ, the first one with two layers.
    "vtn": ("vtn", dict(depth=1, dictionary=2, hybrid="simplified", temporal_depth=3, window=(4, 4, 6))),
    "vtn_resnet": ("vtn", dict(backbone="resnet", depths=(1, 1), stem=4, projection="none", temporal_depth=1)),
    "space_only": ("vit", dict(depth=1, frame_average="before_norm")),
    "swin_merged": ("swin", dict(depth=4, depths=(2, 2), patch_size=2, dictionary=2)),
    "cvt": ("cvt", dict(depth=3, depths=(1, 1, 1))),
    "stat": ("stat", dict(depth=2, depths=(1, 1))),
    "mean_keys": ("stat", dict(depth=2, depths=(1, 1), long_key="mean", window=1, aggregation_layers=0)),
}
# Models whose parts all occur in the registered schemes or in the models above are only traced.
TRACED = ("vit", "msca")
COMPUTED = [*ENTRIES, *OPTIONS, *(name for name in MODELS if name not in (*OPTIONS, *TRACED))]
# The registered schemes, and attentions and options of them that no scheme has.
MASKED = [
    *ENTRIES,
    *("timesformer", "havit", "cosine", "two_views", "shifted_patches", "vtn", "swin_merged", "cvt", "stat"),
    "mean_keys",
]
EVEN_DEPTH = 2


def tiny_model(name, **options):
    """Returns (graph, random parameters, two clips) of a registered scheme or of a model."""
    if name not in ENTRIES:
        model, fields = OPTIONS.get(name, (name, {}))
        return *make(model, **fields, **options), clips(2)
    frames, side, _ = ENTRIES[name].grid
    make_model = scheme_model(ENTRIES[name], depth=EVEN_DEPTH, **options)
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    return graph, randomise(nnx.to_pure_dict(state)), clips(2, frames=frames, size=side * PATCH)


@cache
def program(name, masked=False):
    """Returns (f, parameters): f(parameters) computes the relevance of two clips and the model's logits in float64."""
    graph, parameters, video = tiny_model(name, masked=masked, dtype="float64")

    @quick_jit
    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        return relevance(model, video), model(video)

    def explain(parameters):
        with jax.enable_x64(True):
            return jax.device_get(run(jax.tree.map(np.float64, parameters), video))

    return explain, parameters


@cache
def explained(name, masked=False):
    # Called as other tests call `program`: the cache tells a default from the same value that is given.
    explain, parameters = program(name, masked=True) if masked else program(name)
    return explain(parameters)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_explained_logits_are_those_of_the_model(name):
    found, logits = explained(name)
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(found.target, np.argmax(logits, axis=1))


@pytest.mark.parametrize("name", TRACED)
def test_the_other_models_have_only_known_parts(name):
    graph, parameters, video = tiny_model(name)
    found = jax.eval_shape(lambda parameters: relevance(nnx.merge(graph, parameters), video), parameters)
    assert found.rollout.shape == found.gradient.shape == (2, TINY["frames"], 4, 4)


@pytest.mark.parametrize("name", MASKED)
def test_gathered_and_masked_attention_have_the_same_relevance(name):
    (gathered, _), (masked, _) = explained(name), explained(name, masked=True)
    for field in ("rollout", "gradient", "heads", "frames"):
        expected = getattr(masked, field)
        if expected is not None:
            np.testing.assert_allclose(getattr(gathered, field), expected, atol=1e-9 * expected.max(), err_msg=field)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), gathered.dictionary_shares, masked.dictionary_shares
    )


def test_programs_for_tpus_have_the_same_relevance():
    explain, parameters = program.__wrapped__("mevit")
    with traced_for("tpu"):
        found = explain(parameters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, explained("mevit"))


@pytest.mark.parametrize("name", COMPUTED)
def test_rollout_sums_to_at_most_1(name):
    found, _ = explained(name)
    sums = found.rollout.sum(axis=(1, 2, 3))
    assert (found.rollout >= 0).all() and (found.gradient >= 0).all() and found.gradient.max() > 0
    assert (sums > 0.05).all() and (sums < 1 + 1e-5).all()
    if name == "swin":  # it has neither class tokens, which keep a share, nor a dictionary
        np.testing.assert_allclose(sums, 1, atol=1e-5)


def without_scores(parameters):
    """Returns the parameters with queries and keys of zero, so that every query weighs all its keys equally."""

    def change(path, leaf):
        if path[-2].key != "qkv":
            return leaf
        return np.where(np.arange(leaf.shape[-1]) < 2 * leaf.shape[-1] // 3, 0, leaf)

    return jax.tree_util.tree_map_with_path(change, parameters)


# Schemes whose groups are the sets of keys of their queries, so that the class token's keys are known.
PARTITIONS = [name for name, entry in ENTRIES.items() if entry.make().whole and not entry.make().reads_neighbours]


@pytest.mark.parametrize("name", [name for name in PARTITIONS if "clip" in ENTRIES[name].class_tokens])
def test_rollout_of_equal_weights_follows_the_hand_written_keys(name):
    """A patch reads its keys and the class token. The class token reads every group, and takes the mean of them."""
    entry = ENTRIES[name]
    places = list(np.ndindex(*entry.grid))
    keys = [sorted(places.index(key) for key in set(entry.expected_keys(entry.grid, *place))) for place in places]
    weights = np.zeros((1 + len(places), 1 + len(places)))
    for query, group in enumerate(keys, start=1):
        weights[query, [0, *(1 + key for key in group)]] = 1 / (1 + len(group))
    first_queries = [1 + group[0] for group in sorted(set(map(tuple, keys)))]
    weights[0] = weights[first_queries].mean(axis=0)
    expected = np.linalg.matrix_power((np.eye(len(weights)) + weights) / 2, EVEN_DEPTH)[0, 1:]
    explain, parameters = program(name)
    found, _ = explain(without_scores(parameters))
    np.testing.assert_allclose(found.rollout[0], expected.reshape(entry.grid), rtol=1e-9)


def test_the_maps_of_a_joint_model_are_those_of_the_papers():
    """Compares with the formulas on whole matrices: Abnar and Zuidema; Chefer et al., eq. 5 and 6."""
    (found, _), (_, parameters) = explained("joint"), program("joint")
    graph, _ = make("joint")
    model, heads = nnx.merge(graph, parameters), TINY["heads"]
    layers = parameters["encoder"]["stages"][0]["layers"]["sublayers"]

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def forward(video, perturbations):
        patches = model.encoder.embedding(video[None])
        class_tokens = model.encoder.initial_class_tokens(patches)
        x = jnp.concatenate([class_tokens[0], patches[0].reshape(-1, patches.shape[-1])])
        weights = []
        for i in range(TINY["depth"]):
            attention, mlp = (jax.tree.map(itemgetter(i), layers[j]) for j in (0, 1))
            q, k, v = jnp.moveaxis(
                linear(norm(x, attention["norm"]), attention["qkv"]).reshape(len(x), 3, heads, -1), (1, 2), (0, 1)
            )
            weights.append(jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / k.shape[-1] ** 0.5, axis=-1))
            attended = jnp.moveaxis(weights[-1] * (1 + perturbations[i]) @ v, 0, 1).reshape(len(x), -1)
            x = x + linear(attended, attention["out"])
            x = x + linear(jax.nn.gelu(linear(norm(x, mlp["norm"]), mlp["wide"]), approximate=False), mlp["out"])
        return linear(norm(x[0], parameters["encoder"]["norm"]), parameters["head"]), jnp.stack(weights)

    def reference(video):
        logits, weights = forward(video, zeros := jnp.zeros((2, heads, count, count)))
        return weights, jax.grad(lambda perturbations: forward(video, perturbations)[0][jnp.argmax(logits)])(zeros)

    count = 1 + TINY["frames"] * 16
    with jax.default_matmul_precision("highest"):
        weights, gradients = quick_jit(reference)(clips(2)[1])
    rollout, relevances = np.eye(count), np.eye(count)
    for weight, gradient in zip(np.asarray(weights, np.float64), np.asarray(gradients, np.float64), strict=True):
        rollout = (np.eye(count) + weight.mean(0)) / 2 @ rollout
        relevances = relevances + gradient.clip(0).mean(0) @ relevances
    largest = relevances[0, 1:].max()
    np.testing.assert_allclose(found.rollout[1].ravel(), rollout[0, 1:], rtol=1e-3)
    np.testing.assert_allclose(found.gradient[1].ravel(), relevances[0, 1:], rtol=1e-3, atol=1e-4 * largest)
    np.testing.assert_allclose(found.heads[1].reshape(heads, -1), weights[-1][:, 0, 1:], rtol=1e-3)


def test_the_share_of_a_dictionary_with_equal_weights():
    explain, parameters = program("havit")
    found, _ = explain(without_scores(parameters))
    time, space = found.dictionary_shares.values()
    np.testing.assert_allclose(time, np.full((2, 2), 3 / (3 + TINY["frames"])), atol=1e-6)
    np.testing.assert_allclose(space, np.full((2, 2), 3 / (3 + 16)), atol=1e-5)
    assert explained("joint")[0].dictionary_shares == {}


@pytest.mark.parametrize("name, layers", [("vtn", 3), ("vtn_resnet", 1)])
def test_the_weights_of_frames_are_those_of_the_class_token(name, layers):
    frames = explained(name)[0].frames
    assert frames.shape == (2, layers, TINY["heads"], TINY["frames"])
    assert (frames > 0).all() and (frames.sum(-1) < 1).all()
    assert explained("joint")[0].frames is None


def test_the_weights_of_frames_are_given_by_layer():
    """The class token reads itself and all frames equally where its query is 0."""
    explain, parameters = program("vtn")

    def without_query(path, leaf):
        name = jax.tree_util.keystr(path)
        return np.stack([0 * leaf[0], leaf[1]]) if "['stages'][0]" in name and "q_global" in name else leaf

    found, _ = explain(jax.tree_util.tree_map_with_path(without_query, parameters))
    first, *others = np.moveaxis(found.frames, 1, 0)
    np.testing.assert_allclose(first, 1 / (1 + TINY["frames"]), rtol=1e-9)
    assert [np.ptp(layer) > 0.01 for layer in others] == [True, True]


def test_a_given_class_is_explained():
    graph, parameters, video = tiny_model("scheme motion")
    run = quick_jit(lambda p, video, target: relevance(nnx.merge(graph, p), video, target=target).gradient)
    one, other = (run(parameters, video, np.array([label] * 2)) for label in (0, 1))
    assert np.abs(one - other).max() > 0.1 * one.max()
    likeliest = explained("scheme motion")[0]
    np.testing.assert_allclose(
        run(parameters, video, likeliest.target), likeliest.gradient, atol=1e-3 * likeliest.gradient.max()
    )


@pytest.mark.quick
def test_a_model_without_class_tokens_is_refused():
    graph, parameters = make("stat", depth=2, depths=(1, 1), frame_token="mean", long_key="mean")
    with pytest.raises(ConfigError, match="which a model with model.frame_token=mean does not have"):
        jax.eval_shape(lambda parameters: relevance(nnx.merge(graph, parameters), clips(1)), parameters)


def draw_explanation(target, frames=5, layers=3):
    """Returns an explanation of random numbers."""
    rng = np.random.default_rng(0)
    clip = Clip("a$b.mp4", rng.integers(0, 256, (frames, 32, 32, 3), np.uint8), 3 * np.arange(frames), "")
    maps, weights = rng.random((2, frames, 4, 4)), rng.random((layers, 2, frames)) / frames
    return Explanation(clip, target, 0.5, np.ones(2) / 2, *maps, None, weights[-1].mean(0), weights, {})


TITLE = "Attention weights of the class token, layer {} of 3; run $x^$ 跑"


@pytest.mark.quick
def test_pictures_of_frames_and_of_two_models():
    """Names of classes and files may hold any characters."""
    explanation = draw_explanation("run $x^$ 跑")
    last, first = (explanation.files(layer)["time.png"] for layer in (None, 1))
    assert last == draw_strip(explanation.time_layers[-1], *explanation.clip[1:3], TITLE.format(3))
    assert first == draw_strip(explanation.time_layers[0], *explanation.clip[1:3], TITLE.format(1))
    red = explanation._replace(rollout=explanation.rollout * 0)
    picture = cv2.imdecode(np.frombuffer(draw_beside({"a": explanation, "b": red}), np.uint8), 1)
    rows = np.split(picture[: len(picture) // 5 * 5], 5)  # frames, two rollouts, two gradients
    frames, *maps = (row[20:110, 260:].astype(int) for row in rows)
    assert [np.abs(shown - frames).mean() > 5 for shown in maps] == [True, False, True, True]
    for layer, words in ((0, "--layer=0 must be between 1 and 3"), (4, "--layer=4 must be between 1 and 3")):
        with pytest.raises(ConfigError, match=words):
            explanation.files(layer)
    with pytest.raises(ConfigError, match="--layer=1 selects a layer of a temporal encoder, which only VTN has"):
        explanation._replace(time=None, time_layers=None).files(1)


@pytest.mark.quick
def test_unknown_modules_are_refused():
    class Unknown(nnx.Module):
        pass

    with pytest.raises(ConfigError, match="--mode=explain does not support the sublayer Unknown. Register it with"):
        propagate(Unknown(), None, [])
    with pytest.raises(ConfigError, match="--mode=explain does not support the encoder Unknown. Register it with"):
        ModelPass().encoder(Unknown(), None)
    with pytest.raises(ConfigError, match="--mode=explain does not support the readout Unknown. Register it with"):
        ModelPass().readout(Unknown(), None, None, None)

"""Relevance of patches: what it is computed from, and what the command writes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import TINY, clips, make, quick_jit

from vidformers.inference.explain.relevance import relevance
from vidformers.models.registry import MODELS

OPTIONS = {
    "vtn_resnet": ("vtn", dict(backbone="resnet", depths=(1, 1), stem=4)),
    "vtn_two_attentions": ("vtn", dict(dictionary=2, hybrid="simplified")),
    "swin_merged": ("swin", dict(depth=4, depths=(2, 2), patch_size=2, dictionary=2)),
    "motion_with_padding": ("mevit", dict(block_size=3, class_blocks=0)),
    "cosine": ("havit", dict(attention="joint", kernel="cosine")),
    "two_views": ("havit", dict(hybrid="multi_view", class_token="input")),
    "shifted_patches": ("msca", dict(direction="patches", moved="QV")),
    "mean_keys": ("stat", dict(long_key="mean", window=1, aggregation_layers=0)),
}
ALL = [*MODELS, *OPTIONS]


@cache
def explained(name, masked=False):
    """(parameters, what `relevance` says of two clips, the logits of the model itself), in double precision."""
    model, options = OPTIONS.get(name, (name, {}))
    graph, parameters = make(model, masked=masked, dtype="float64", **options)

    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        return relevance(model, video), model(video)

    with jax.enable_x64(True):
        return jax.device_get((parameters, *quick_jit(run)(jax.tree.map(np.float64, parameters), clips(2))))


@pytest.mark.parametrize("name", ALL)
def test_what_is_explained_is_the_answer_of_the_model(name):
    _, found, logits = explained(name)
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(found.target, np.argmax(logits, axis=1))


@pytest.mark.parametrize("name", ALL)
def test_relevance_is_the_same_by_groups_and_by_masks(name):
    (_, gathered, _), (_, masked, _) = explained(name), explained(name, masked=True)
    for field in ("rollout", "gradient", "heads", "frames"):
        expected = getattr(masked, field)
        if expected is not None:
            np.testing.assert_allclose(getattr(gathered, field), expected, atol=1e-9 * expected.max(), err_msg=field)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), gathered.dictionary, masked.dictionary)


@pytest.mark.parametrize("name", ALL)
def test_rollout_hands_on_at_most_the_whole(name):
    _, found, _ = explained(name)
    mass = found.rollout.sum(axis=(1, 2, 3))
    assert (found.rollout >= 0).all() and (found.gradient >= 0).all() and found.gradient.max() > 0
    assert (mass > 0.05).all() and (mass < 1 + 1e-5).all()
    if name == "swin":  # has no class tokens, that keep a part, nor a dictionary
        np.testing.assert_allclose(mass, 1, atol=1e-5)


def test_both_maps_of_a_joint_model_are_those_of_the_papers():
    """Against the formulas with whole matrices: Abnar and Zuidema; Chefer et al., eq. 5 and 6."""
    parameters, found, _ = explained("joint")
    graph, _ = make("joint")
    model, heads = nnx.merge(graph, parameters), TINY["heads"]
    layers = parameters["encoder"]["stages"][0]["layers"]["sublayers"]

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def forward(video, nudges):
        patches = model.encoder.embedding(video[None])
        x = jnp.concatenate([model.encoder.initial_class_tokens(patches)[0], patches[0].reshape(-1, patches.shape[-1])])
        weights = []
        for i in range(TINY["depth"]):
            attention, mlp = (jax.tree.map(lambda leaf: leaf[i], layers[j]) for j in (0, 1))
            q, k, v = jnp.moveaxis(
                linear(norm(x, attention["norm"]), attention["qkv"]).reshape(len(x), 3, heads, -1), (1, 2), (0, 1)
            )
            weights.append(jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / k.shape[-1] ** 0.5, axis=-1))
            read = jnp.moveaxis(weights[-1] * (1 + nudges[i]) @ v, 0, 1).reshape(len(x), -1)
            x = x + linear(read, attention["out"])
            x = x + linear(jax.nn.gelu(linear(norm(x, mlp["norm"]), mlp["wide"]), approximate=False), mlp["out"])
        return linear(norm(x[0], parameters["encoder"]["norm"]), parameters["head"]), jnp.stack(weights)

    def reference(video):
        logits, weights = forward(video, nudges := jnp.zeros((2, heads, count, count)))
        return weights, jax.grad(lambda nudges: forward(video, nudges)[0][jnp.argmax(logits)])(nudges)

    count = 1 + TINY["frames"] * 16
    with jax.default_matmul_precision("highest"):
        weights, edges = quick_jit(reference)(clips(2)[1])
    half, whole = np.eye(count), np.eye(count)
    for attention, edge in zip(np.asarray(weights, np.float64), np.asarray(edges, np.float64), strict=True):
        half = (np.eye(count) + attention.mean(0)) / 2 @ half
        whole = whole + edge.clip(0).mean(0) @ whole
    np.testing.assert_allclose(found.rollout[1].ravel(), half[0, 1:], rtol=1e-3)
    np.testing.assert_allclose(found.gradient[1].ravel(), whole[0, 1:], rtol=1e-3, atol=1e-4 * whole[0, 1:].max())
    np.testing.assert_allclose(found.heads[1].reshape(heads, -1), weights[-1][:, 0, 1:], rtol=1e-3)


def without_scores(parameters):
    """The same parameters with queries and keys of zero: every query reads all its keys alike."""

    def change(path, leaf):
        if path[-2].key != "qkv":
            return leaf
        return np.where(np.arange(leaf.shape[-1]) < 2 * leaf.shape[-1] // 3, 0, leaf)

    return jax.tree_util.tree_map_with_path(change, parameters)


def test_a_dictionary_has_its_share_of_even_weights():
    graph, parameters = make("havit")
    found = quick_jit(lambda p, video: relevance(nnx.merge(graph, p), video))(without_scores(parameters), clips(2))
    time, space = found.dictionary.values()
    np.testing.assert_allclose(time, np.full((2, 2), 3 / (3 + TINY["frames"])), atol=1e-6)
    np.testing.assert_allclose(space, np.full((2, 2), 3 / (3 + 16)), atol=1e-5)
    assert explained("vit")[1].dictionary == {}


def test_the_weights_of_frames_are_those_of_the_class_token():
    _, found, _ = explained("vtn")
    assert found.frames.shape == (2, TINY["frames"]) and (found.frames > 0).all() and (found.frames.sum(1) < 1).all()
    assert explained("vit")[1].frames is None


def test_a_chosen_class_is_explained():
    graph, parameters = make("mevit")
    run = quick_jit(lambda p, video, target: relevance(nnx.merge(graph, p), video, target=target).gradient)
    one, other = (run(parameters, clips(2), np.array([label] * 2)) for label in (0, 1))
    assert np.abs(one - other).max() > 0.1 * one.max()

"""HaViT: kernels that are linear in the number of tokens, and external tokens beside those of the clip."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sublayers import branch, draw_tokens, influence, layer
from tiny import quick_jit

from vidformers import ConfigError, build
from vidformers.attention.core import attend
from vidformers.attention.dictionary import HYBRIDS, Dictionary
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.kernels import KERNELS, Source, linear_attention, quadratic_attention, softmax
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.models.summary import count_macs, summarise

SCHEMES = {"frame": Frame(), "time": Time(), "joint": Joint(), "motion": Motion(2)}
NO_CLASS = dict(class_keys=False, class_queries=False)
close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


# The definitions


CASES = [(scheme, kernel, "combined", {}) for scheme in SCHEMES for kernel in KERNELS]
CASES += [("joint", kernel, hybrid, {}) for kernel in KERNELS for hybrid in HYBRIDS[1:]]
CASES += [(scheme, "cosine", "combined", dict(cosine_index="t")) for scheme in ("time", "joint", "motion")]
CASES += [("motion", kernel, None, {}) for kernel in KERNELS]


@pytest.mark.parametrize("scheme, kernel, hybrid, options", CASES)
def test_gathered_equals_masked_with_its_gradient(float64, scheme, kernel, hybrid, options):
    options = dict(kernel=kernel, dtype=jnp.float64, **options, **(NO_CLASS if kernel == "cosine" else {}))
    if hybrid:
        options |= dict(external=3, hybrid=hybrid)
    tokens = draw_tokens((2, 3, 5), 1, clips=2)  # blocks of two do not divide it
    cotangent = draw_tokens((2, 3, 5), 1, clips=2, seed=1)

    @quick_jit
    def both(tokens):
        def one(masked):
            graph, parameters = layer(SCHEMES[scheme], masked=masked, **options)
            parameters = jax.tree.map(np.float64, parameters)

            def loss(parameters, tokens):
                out = branch(graph, parameters, tokens)
                return sum((a * b).sum() for a, b in zip(out, cotangent, strict=True) if a is not None), out

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, tokens)

        return one(False), one(True)

    gathered, masked = both(tokens)
    jax.tree.map(close, gathered, masked)


def test_cosine_weighs_by_the_distance_in_the_sequence(float64):
    """HaViT's cosine re-weighting, from cosFormer's definition: phi(q_i) phi(k_j) cos(pi/2 (i-j)/m)."""
    n = 5
    q, k, v = (draw(n, 1, 8, seed=i) for i in range(3))
    distance = np.arange(n)[:, None] - np.arange(n)
    weights = np.maximum(q[:, 0], 0) @ np.maximum(k[:, 0], 0).T * np.cos(np.pi / 2 * distance / n)
    expected = weights @ v[:, 0] / weights.sum(1, keepdims=True)
    angle = (np.arange(n) + 1) * np.pi / 2 / n
    close(attend(q, k, v, angle=angle[None], kernel=linear_attention)[:, 0], expected)


@pytest.mark.parametrize("turned", [False, True])
def test_linear_equals_quadratic_over_several_sources(float64, turned):
    angle = np.linspace(0.1, 1.5, 6)[None] if turned else None
    hidden = np.array([[1, 1, 0, 1, 1, 1]], bool)
    sources = [Source(draw(2, 6, 8), draw(2, 6, 8, seed=1), hidden, None, angle), Source(draw(2, 3, 8), draw(2, 3, 8))]
    close(linear_attention(draw(2, 6, 8, seed=2), sources), quadratic_attention(draw(2, 6, 8, seed=2), sources))


def test_a_query_without_positive_features_reads_nothing():
    q, k, v = -np.ones((3, 1, 4)), np.ones((3, 1, 4)), np.ones((3, 1, 4))
    np.testing.assert_array_equal(attend(q, k, v, kernel=linear_attention), 0)


@pytest.mark.parametrize("name, doubled", [("relu", 2), ("cosine", 2), ("softmax", 4)])
def test_twice_the_tokens_cost_a_linear_kernel_twice_and_softmax_four_times(name, doubled):
    def products(n):
        x = jax.ShapeDtypeStruct((n, 3, 8), jnp.float32)
        angle = jnp.ones((1, n)) if name == "cosine" else None
        kernel = softmax if name == "softmax" else linear_attention
        return count_macs(lambda q, k, v: attend(q, k, v, angle=angle, kernel=kernel), x, x, x).total

    assert products(64) == doubled * products(32)


# Internal and external attention


def dictionary(hybrid, size=3):
    entries = Dictionary(size, 16, 2, hybrid=hybrid, rngs=nnx.Rngs(0))
    entries.keys[...], entries.values[...] = draw(size, 16), draw(size, 16, seed=1)
    return entries


def clip(n=5):
    return tuple(draw(n, 2, 8, seed=i) for i in range(2, 5))


def test_combined_correlation_is_a_gate_between_internal_and_external(float64):
    """g s_int + (1-g) s_ext with g = sigmoid(lse_int - lse_ext), a head and query at a time."""
    q, k, v = clip()
    keys, values = (x.reshape(3, 2, 8) for x in (draw(3, 16), draw(3, 16, seed=1)))
    inside, outside = (jax.nn.logsumexp(jnp.einsum("qhe,khe->qhk", q, x) / 8**0.5, axis=-1) for x in (k, keys))
    gate = jax.nn.sigmoid(inside - outside)[..., None]
    expected = gate * attend(q, k, v) + (1 - gate) * attend(q, keys, values)
    close(attend(q, k, v, dictionary=dictionary("combined")), expected)


@pytest.mark.parametrize("kernel", [softmax, linear_attention])
def test_the_other_hybrids_combine_two_attentions(float64, kernel):
    q, k, v = clip()
    keys, values = (x.reshape(3, 2, 8) for x in (draw(3, 16), draw(3, 16, seed=1)))
    internal, external = attend(q, k, v, kernel=kernel), attend(q, keys, values, kernel=kernel)
    run = partial(attend, q, k, v, kernel=kernel)
    close(run(dictionary=dictionary("simplified")), internal + external)
    close(run(dictionary=dictionary("multi_view")), np.concatenate([internal, external], axis=1))
    close(run(dictionary=dictionary("split_heads")), np.concatenate([internal[:, :1], external[:, 1:]], axis=1))


def test_multi_view_with_twice_the_same_projection_is_simplified(float64):
    tokens = draw_tokens((2, 2, 2), 1)
    graph, parameters = layer(Frame(), external=3, hybrid="simplified", dtype=jnp.float64)
    expected = branch(graph, jax.tree.map(np.float64, parameters), tokens)
    twice = parameters | {"out": parameters["out"] | {"kernel": np.tile(parameters["out"]["kernel"], (2, 1))}}
    graph, _ = layer(Frame(), external=3, hybrid="multi_view", dtype=jnp.float64)
    jax.tree.map(close, branch(graph, jax.tree.map(np.float64, twice), tokens), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dictionary_adds_no_patch_to_what_a_query_sees(scheme):
    tokens = draw_tokens((2, 4, 4), 1)
    with_it, without = (influence(*layer(SCHEMES[scheme], external=n), tokens) for n in (3, 0))
    jax.tree.map(np.testing.assert_array_equal, with_it, without)


# Models


def cost(**options):
    return summarise(partial(build, "havit", num_classes=400, **{"size": "S", "dictionary": 112, **options}))


def test_counts_of_table_6():
    joint = cost(attention="joint").params
    assert cost().params == 34_541_584 and joint == 26_403_856
    assert cost(attention="joint", kernel="relu").params == cost(attention="joint", kernel="cosine").params == joint


def test_parameters_follow_the_formulas():
    d, none = 384, cost(dictionary=0).params
    assert cost(dictionary=1).params - none == 12 * 2 * 2 * d, "one dictionary an attention, keys and values"
    assert cost(dictionary=1, share_dictionary=True).params - none == 12 * 2 * d
    assert cost(hybrid="multi_view").params - cost(hybrid="simplified").params == 24 * d**2
    assert none - cost(dictionary=0, attention="joint").params == 12 * (4 * d**2 + 6 * d)
    assert cost(temporal_fc=True).params - cost().params == 12 * (d**2 + d)
    assert cost(class_token="input").params == cost(class_token="late").params


def test_every_model_takes_a_dictionary():
    for name, attentions in (("vit", 1), ("timesformer", 2), ("joint", 1), ("msca", 1), ("tokenshift", 1)):
        counts = [summarise(partial(build, name, num_classes=5, size="Ti", dictionary=n)).params for n in (0, 7)]
        assert counts[1] - counts[0] == 12 * attentions * 2 * 7 * 192


@pytest.mark.parametrize(
    "name, options, field",
    [
        ("havit", dict(dictionary=-1), "model.dictionary=-1"),
        ("havit", dict(hybrid="sum"), "model.hybrid='sum'"),
        ("havit", dict(hybrid="split_heads", heads=3, width=48), "model.hybrid=split_heads"),
        ("havit", dict(kernel="elu"), "model.kernel='elu'"),
        ("havit", dict(cosine_index="y"), "model.cosine_index='y'"),
        ("havit", dict(kernel="cosine", class_token="input"), "model.kernel=cosine"),
        ("vit", dict(kernel="cosine"), "model.kernel=cosine"),
        ("msca", dict(kernel="cosine"), "model.kernel=cosine"),
        ("mevit", dict(kernel="cosine", class_blocks=0), "model.kernel=cosine"),
        ("havit", dict(attention="split"), "model.attention='split'"),
        ("havit", dict(class_blocks=0), "model.class_blocks=0"),
        ("havit", dict(class_token="no"), "model.class_token='no'"),
        ("havit", dict(attention="joint", temporal_fc=True), "model.temporal_fc"),
    ],
)
def test_a_combination_that_means_nothing_is_refused_in_a_sentence(name, options, field):
    with pytest.raises(ConfigError) as refusal:
        nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **{"num_classes": 5, "dictionary": 2, **options}))
    assert field in str(refusal.value) and str(refusal.value).endswith(".")

"""HaViT: kernels that are linear in the number of tokens, and external tokens beside those of the clip."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sublayers import (
    HEADS,
    WIDTH,
    assert_gathered_equals_masked,
    attention,
    count_parameters,
    draw_tokens,
    layer,
    run,
)
from tiny import quick_jit

from vidformers import ConfigError, build
from vidformers.attention.core import SelfAttention, compute_attention
from vidformers.attention.dictionary import HYBRIDS, Dictionary
from vidformers.attention.frame import Frame
from vidformers.attention.kernels import KeyValues, linear_attention, quadratic_attention, softmax
from vidformers.attention.motion import Motion
from vidformers.models.summary import count_macs

close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)


def compiled(function, **options):
    """Returns the function with these options under jit, which takes less time than compiling every operation."""
    run = quick_jit(partial(function, **options))
    return lambda *arguments, **named: np.asarray(run(*arguments, **named))


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


# The definitions


@pytest.mark.parametrize("hybrid", HYBRIDS[1:])
@pytest.mark.parametrize("kernel", ["softmax", "cosine"])
def test_gathered_equals_masked_in_every_hybrid(float64, kernel, hybrid):
    """tests/attention/test_registry.py holds the first hybrid, with every scheme and kernel."""
    options = dict(class_keys=False, class_queries=False) if kernel == "cosine" else {}

    def make(masked):
        options_of_form = dict(kernel=kernel, masked=masked, dtype=jnp.float64, **options)
        return attention(SelfAttention, Motion(2), WIDTH, HEADS, external=3, hybrid=hybrid, **options_of_form)

    assert_gathered_equals_masked(make, draw_tokens((2, 3, 3), 1))  # blocks of two are padded


@pytest.mark.quick
@pytest.mark.parametrize("has_angle", [False, True])
def test_linear_equals_quadratic_over_clip_and_dictionary(float64, has_angle):
    angle = np.linspace(0.1, 1.5, 6) if has_angle else None
    mask = np.array([[1, 1, 0, 1, 1, 1]], bool)
    key_values = [
        KeyValues(draw(6, 2, 8), draw(6, 2, 8, seed=1), mask, None, angle),
        KeyValues(draw(3, 2, 8), draw(3, 2, 8)),
    ]
    q = draw(6, 2, 8, seed=2)
    close(compiled(linear_attention)(q, key_values), compiled(quadratic_attention)(q, key_values))


def test_a_query_without_positive_features_reads_nothing():
    q, k, v = -np.ones((3, 1, 4)), np.ones((3, 1, 4)), np.ones((3, 1, 4))
    np.testing.assert_array_equal(compiled(compute_attention, kernel=linear_attention)(q, k, v), 0)


@pytest.mark.parametrize("name, doubled", [("relu", 2), ("cosine", 2), ("softmax", 4)])
def test_twice_the_tokens_double_the_cost_of_a_linear_kernel_and_quadruple_that_of_softmax(name, doubled):
    def macs(n):
        x = jax.ShapeDtypeStruct((n, 3, 8), jnp.float32)
        angle = jnp.ones(n) if name == "cosine" else None
        kernel = softmax if name == "softmax" else linear_attention
        return count_macs(lambda q, k, v: compute_attention(q, k, v, angle=angle, kernel=kernel), x, x, x).total

    assert macs(64) == doubled * macs(32)


# Internal and external attention


def dictionary(hybrid, size=3):
    module = Dictionary(size, 16, 2, hybrid=hybrid, rngs=nnx.Rngs(0))
    module.keys[...], module.values[...] = draw(size, 16), draw(size, 16, seed=1)
    return module


def draw_qkv(n=5):
    return tuple(draw(n, 2, 8, seed=i) for i in range(2, 5))


def test_combined_correlation_is_a_gate_between_internal_and_external(float64):
    """g s_int + (1-g) s_ext with g = sigmoid(lse_int - lse_ext), for each head and query."""
    q, k, v = draw_qkv()
    keys, values = (x.reshape(3, 2, 8) for x in (draw(3, 16), draw(3, 16, seed=1)))

    @compiled
    def gated():
        internal, external = (jax.nn.logsumexp(jnp.einsum("qhe,khe->qhk", q, x) / 8**0.5, axis=-1) for x in (k, keys))
        gate = jax.nn.sigmoid(internal - external)[..., None]
        return gate * compute_attention(q, k, v) + (1 - gate) * compute_attention(q, keys, values)

    close(compiled(compute_attention, dictionary=dictionary("combined"))(q, k, v), gated())


def test_multi_view_with_twice_the_same_projection_is_simplified(float64):
    tokens = draw_tokens((2, 2, 2), 1)
    graph, parameters = layer(Frame(), external=3, hybrid="simplified", dtype=jnp.float64)
    expected = run(graph, parameters, tokens)
    twice = parameters | {"out": parameters["out"] | {"kernel": np.tile(parameters["out"]["kernel"], (2, 1))}}
    graph, _ = layer(Frame(), external=3, hybrid="multi_view", dtype=jnp.float64)
    jax.tree.map(close, run(graph, twice, tokens), expected)


# Models


@cache
def count(name="havit", **options):
    defaults = dict(num_classes=400, size="S", dictionary=112)
    return count_parameters(lambda: build(name, rngs=nnx.Rngs(0), **{**defaults, **options}))


def test_counts_of_table_6():
    joint = count(attention="joint")
    assert count() == 34_541_584 and joint == 26_403_856
    assert count(attention="joint", kernel="relu") == count(attention="joint", kernel="cosine") == joint


def test_a_dictionary_for_each_kind_of_attention_fits_both_totals_of_table_6():
    joint, divided = count(dictionary=0, attention="joint"), count(dictionary=0)
    an_entry = count(dictionary=1, dictionary_per="model", attention="joint") - joint
    of_both = count(dictionary=1, dictionary_per="model") - divided
    of_one_for_both = count(dictionary=1, dictionary_per="model", share_dictionary=True) - divided

    def sizes(of_divided):
        """Returns the sizes n for which both totals agree."""
        totals = ((n, joint + n * an_entry, divided + n * of_divided) for n in range(1, 10_000))
        return [n for n, *both in totals if [f"{total / 1e6:.1f}" for total in both] == ["26.4", "34.5"]]

    assert sizes(of_both) == list(range(1285, 1350)) and sizes(of_one_for_both) == []
    assert count(dictionary=1285, dictionary_per="model") == divided + 1285 * of_both


def test_parameters_follow_the_formulas():
    d, without, with_112 = 384, count(dictionary=0), count()
    assert count(dictionary=1) - without == 12 * 2 * 2 * d, "one dictionary an attention, with keys and values"
    assert count(dictionary=1, share_dictionary=True) - without == 12 * 2 * d
    assert count(dictionary=1, dictionary_per="model") - without == 2 * 2 * d, "one for time and one for space"
    assert count(dictionary=1, dictionary_per="model", share_dictionary=True) - without == 2 * d
    mlp = 8 * d**2 + 7 * d  # with its norm
    assert count(hybrid="simplified", external_mlp=True) - with_112 == 24 * mlp
    assert count(hybrid="multi_view", external_mlp=True) - count(hybrid="multi_view") == 24 * mlp
    assert count(hybrid="simplified", external_mlp=True, dictionary_per="model") == (
        count(dictionary_per="model") + 2 * mlp
    )
    assert count(hybrid="multi_view") - count(hybrid="simplified") == 24 * d**2
    assert without - count(dictionary=0, attention="joint") == 12 * (4 * d**2 + 6 * d)
    assert count(temporal_fc=True) - with_112 == 12 * (d**2 + d)
    assert count(class_token="input") == count(class_token="late")


@pytest.mark.parametrize(
    "name, attentions", [("vit", 1), ("timesformer", 2), ("joint", 1), ("msca", 1), ("tokenshift", 1)]
)
def test_every_model_takes_a_dictionary(name, attentions):
    without, with_7 = (count(name, size="Ti", dictionary=n) for n in (0, 7))
    assert with_7 - without == 12 * attentions * 2 * 7 * 192


@pytest.mark.parametrize(
    "name, options, field",
    [
        ("havit", dict(dictionary=-1), "model.dictionary=-1"),
        ("havit", dict(hybrid="sum"), "model.hybrid='sum'"),
        ("havit", dict(hybrid="split_heads", heads=3, width=48), "model.hybrid=split_heads"),
        ("havit", dict(dictionary_per="block"), "model.dictionary_per='block'"),
        ("havit", dict(external_mlp=True), "model.external_mlp=True"),
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
def test_an_impossible_combination_raises_an_error_of_one_sentence(name, options, field):
    with pytest.raises(ConfigError) as error:
        nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **{"num_classes": 5, "dictionary": 2, **options}))
    assert field in str(error.value) and str(error.value).endswith(".")

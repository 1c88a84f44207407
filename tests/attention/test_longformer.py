"""VTN's temporal encoder: window attention against its masked form, its keys and Hugging Face's Longformer."""

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sublayers import HEADS, WIDTH, assert_gathered_equals_masked, attention, branch, count_parameters, module, run
from tiny import quick_jit

from vidformers import ConfigError, build
from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import HYBRIDS
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.layers.tokens import LayerRng
from vidformers.models.summary import count_macs
from vidformers.models.vtn import TemporalEncoder


@cache
def layer(window, hybrid=None, **options):
    dictionary = {} if hybrid is None else dict(external=5, hybrid=hybrid)
    return attention(LongformerAttention, WIDTH, HEADS, window, **dictionary, **options)


def run_encoder(options, *arguments, **named):
    """Runs an encoder, compiled once for each set of options and shapes."""
    graph, parameters = encoder(**options)
    return _run_encoder(graph, parameters, *arguments, **named)


_run_encoder = quick_jit(lambda graph, parameters, *a, **n: nnx.merge(graph, parameters)(*a, **n), static_argnums=0)


@cache
def encoder(width=WIDTH, heads=HEADS, **options):
    return module(lambda: TemporalEncoder(width, heads, rngs=nnx.Rngs(0), **options))


def draw_series(frames: int, hidden=(), clips: int = 1, seed: int = 0) -> FrameSequence:
    """Returns series of `frames` frames. The frames in `hidden` are padding in the last clip."""
    valid = np.ones((clips, 1 + frames), bool)
    valid[-1, [1 + frame for frame in hidden]] = False
    return FrameSequence(np.random.default_rng(seed).normal(size=(clips, 1 + frames, WIDTH)), valid)


# The masked form


OPTIONS = [dict(), dict(tie_global=True), *(dict(hybrid=hybrid) for hybrid in HYBRIDS)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gathered_equals_masked_with_its_gradient(float64, options):
    # Each option runs on one length that no chunk divides. Without options, lengths, windows and padding are drawn too.
    phases = [Phase.explicit] if options else [Phase.explicit, Phase.generate]

    @settings(max_examples=4, phases=phases)
    @example(frames=11, window=6, hidden={3, 9, 10})
    @given(
        frames=st.integers(1, 20),
        window=st.integers(2, 8).map(lambda reach: 2 * reach),
        hidden=st.sets(st.integers(0, 19)),
    )
    def check(frames, window, hidden):
        series = draw_series(frames, [frame for frame in hidden if frame < frames], clips=2)

        def make(masked):
            return layer(window, masked=masked, dtype=jnp.float64, **options)

        def call(sublayer, tokens):
            return sublayer(series._replace(tokens=tokens)).tokens

        assert_gathered_equals_masked(make, series.tokens, call=call)

    check()


# The keys


@pytest.mark.parametrize("tie_global", [False, True])
@pytest.mark.parametrize("frames, window, hidden", [(9, 4, ()), (7, 6, (2, 6)), (3, 8, (1,))])
def test_a_query_sees_exactly_its_window_and_the_class_token(frames, window, hidden, tie_global):
    graph, parameters = layer(window, tie_global=tie_global)
    series = draw_series(frames, hidden)
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)

    def outputs(tokens):  # their gradients vanish only where those of all channels do
        return branch(graph, parameters, series._replace(tokens=tokens))[0] @ mixture

    jacobian = quick_jit(jax.jacrev(outputs))(np.float32(series.tokens))[:, 0]
    expected = np.zeros((1 + frames, 1 + frames), bool)
    for query in range(1 + frames):
        keys = {k for k in range(frames) if query == 0 or abs(query - 1 - k) <= window // 2} - set(hidden)
        expected[query, [query, 0, *(1 + k for k in keys)]] = True  # the output depends on its own query
    np.testing.assert_array_equal(np.any(jacobian, axis=-1), expected)


@pytest.mark.parametrize("tie_global", [False, True])
def test_a_window_of_twice_the_length_is_full_attention(float64, tie_global):
    """For the class token this holds only if it shares the projections of the frames."""
    frames = 6
    graph, parameters = layer(2 * frames, tie_global=tie_global, dtype=jnp.float64)
    series = draw_series(frames, [4], clips=2)

    def full(parameters, series):
        sublayer = nnx.merge(graph, parameters)
        q, k, v = sublayer.qkv.to_heads(series.tokens, 3, sublayer.heads)
        out = compute_attention(q, k, v, series.valid[:, None, None])
        return sublayer.out(out.reshape(2, 1 + frames, WIDTH))

    windowed = np.asarray(run(graph, parameters, series))
    expected = np.asarray(quick_jit(full)(parameters, series))
    np.testing.assert_allclose(windowed[:, 1:], expected[:, 1:], rtol=1e-10, atol=1e-12)
    assert np.allclose(windowed[:, 0], expected[:, 0], rtol=1e-10, atol=1e-12) == tie_global


def test_the_smallest_window_that_sees_all_is_full_attention():
    series = draw_series(6)
    smallest, larger = (run(*layer(window), series) for window in (10, 40))
    np.testing.assert_allclose(smallest, larger, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie_global", [False, True])
def test_every_frame_and_the_class_token_read_the_dictionary(tie_global):
    graph, parameters = layer(4, "combined", tie_global=tie_global)
    before = run(graph, parameters, draw_series(6))
    for name in ("keys", "values"):
        other = {**parameters["dictionary"], name: parameters["dictionary"][name] + 1}
        change = run(graph, {**parameters, "dictionary": other}, draw_series(6)) - before
        assert np.abs(change).max(-1).min() > 1e-2


# Cost


def macs(frames, **options):
    graph, parameters = encoder(window=(8,), depth=2, **options)
    features = jax.ShapeDtypeStruct((1, frames, WIDTH), jnp.float32)
    return count_macs(lambda p, x: nnx.merge(graph, p)(x), parameters, features).total


def test_cost_is_linear_in_the_number_of_frames():
    short, middle, long = map(macs, (64, 128, 256))
    assert long - middle == 2 * (middle - short) > 0
    assert macs(256, masked=True) > 2 * macs(128, masked=True)


def test_memory_is_linear_in_the_number_of_frames_up_to_eight_thousand():
    graph, state = nnx.split(nnx.eval_shape(lambda: LongformerAttention(768, 12, 18, rngs=nnx.Rngs(0))))

    def memory(frames):
        series = FrameSequence(
            jax.ShapeDtypeStruct((1, 1 + frames, 768), jnp.float32), jax.ShapeDtypeStruct((1, 1 + frames), bool)
        )
        forward = quick_jit(lambda p, x: nnx.merge(graph, p)(x).tokens)
        return forward.lower(nnx.to_pure_dict(state), series).compile().memory_analysis().temp_size_in_bytes

    assert 0 < memory(8192) < 2.1 * memory(4096)


def test_far_frames_change_nothing_in_eight_thousand():
    graph, parameters = layer(18)
    series = draw_series(8192)
    all_frames, first_99 = (
        run(graph, parameters, series._replace(valid=np.arange(8193)[None] < tokens)) for tokens in (8193, 100)
    )
    np.testing.assert_allclose(all_frames[0, 1:91], first_99[0, 1:91], rtol=1e-5, atol=1e-5)


# Hugging Face


def linear(arrays, *names):
    """Returns linear layers of torch, (out, in), side by side as one kernel (in, out)."""
    return {
        "kernel": np.concatenate([arrays.pop(f"{name}.weight").T for name in names], axis=1),
        "bias": np.concatenate([arrays.pop(f"{name}.bias") for name in names]),
    }


def norm(arrays, name):
    return {"scale": arrays.pop(f"{name}.weight"), "bias": arrays.pop(f"{name}.bias")}


def block(arrays, i):
    layer = f"encoder.layer.{i}"
    attention = f"{layer}.attention"
    return {
        0: {
            "qkv": linear(arrays, *(f"{attention}.self.{name}" for name in ("query", "key", "value"))),
            "q_global": linear(arrays, f"{attention}.self.query_global"),
            "kv_global": linear(arrays, f"{attention}.self.key_global", f"{attention}.self.value_global"),
            "out": linear(arrays, f"{attention}.output.dense"),
            "norm": norm(arrays, f"{attention}.output.LayerNorm"),
        },
        1: {
            "wide": linear(arrays, f"{layer}.intermediate.dense"),
            "out": linear(arrays, f"{layer}.output.dense"),
            "norm": norm(arrays, f"{layer}.output.LayerNorm"),
        },
    }


def stage(*blocks):
    return {"layers": {"sublayers": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}}


def test_every_token_and_the_head_equal_those_of_hugging_face():
    """Windows are 4, 4 and 8, frame indices exceed the table, and five frames of the second clip are padding."""
    with np.load(Path(__file__).parents[1] / "goldens" / "longformer.npz") as archive:
        arrays = dict(archive)
    arrays.pop("versions")
    features, positions, mask, tokens, output = (
        arrays.pop(name) for name in ("features", "positions", "mask", "tokens", "output")
    )
    first, second, third = (block(arrays, i) for i in range(3))
    mapped = {
        "class_token": arrays.pop("class_token"),
        "position": arrays.pop("embeddings.position_embeddings.weight"),
        "token_type": arrays.pop("embeddings.token_type_embeddings.weight"),
        "norm": norm(arrays, "embeddings.LayerNorm"),
        "stages": {0: stage(first, second), 1: stage(third)},
        "head_norm": norm(arrays, "head.0"),
        "head": linear(arrays, "head.1"),
    }
    assert not arrays, "every array is used"
    graph, parameters = encoder(window=(4, 4, 8))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), parameters, mapped)

    @quick_jit
    def encode(parameters, features):
        module = nnx.merge(graph, parameters)
        return module.encode(features, None, positions, mask), module(features, positions=positions, mask=mask)

    our_tokens, our_output = encode(mapped, features)
    valid = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(our_tokens[valid], tokens[valid], rtol=0, atol=1e-4)
    np.testing.assert_allclose(our_output, output, rtol=0, atol=1e-4)


# The encoder


def test_parameters_are_those_of_the_paper_model():
    def count(depth):
        return count_parameters(lambda: TemporalEncoder(768, 12, depth=depth, rngs=nnx.Rngs(0)))

    backbone_and_head = count_parameters(lambda: build("vit", num_classes=400, rngs=nnx.Rngs(0)))
    assert backbone_and_head + count(3) == 113_502_352
    assert count(3) - count(1) == 2 * 8_859_648


def test_by_default_frames_are_all_valid_and_numbered_from_zero():
    def encode(features, *positions_and_mask):
        return run_encoder(dict(window=(4,)), features, None, *positions_and_mask)

    features = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    index, valid = np.tile(np.arange(5), (2, 1)), np.ones((2, 5), bool)
    expected = encode(features)
    assert expected.shape == (2, WIDTH) and expected.dtype == np.float32
    for positions in (index, index + 286):
        np.testing.assert_array_equal(encode(features, positions, valid), expected)
    assert np.abs(encode(features, index + 1, valid) - expected).max() > 1e-3
    assert np.abs(encode(features[:, ::-1], index, valid) - expected).max() > 1e-3


def test_without_positions_a_full_window_knows_no_order_and_a_narrow_one_no_direction():
    features = np.random.default_rng(0).normal(size=(1, 8, WIDTH)).astype(np.float32)
    orders = features, features[:, ::-1], features[:, [3, 0, 6, 2, 7, 1, 5, 4]]
    for window, shuffled_is_same in ((16, True), (4, False)):
        expected, backward, shuffled = (
            run_encoder(dict(window=(window,)), order, positions=np.zeros((1, 8), np.int32)) for order in orders
        )
        np.testing.assert_allclose(backward, expected, rtol=1e-4, atol=1e-5)
        assert np.allclose(shuffled, expected, rtol=1e-4, atol=1e-5) == shuffled_is_same


def test_padding_changes_nothing():
    def encode(features, mask):
        return run_encoder(dict(window=(4, 6, 6)), features, mask=mask)

    features = np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32)
    padded = encode(features, np.tile(np.arange(9) < 5, (2, 1)))
    np.testing.assert_allclose(padded, encode(features[:, :5], np.ones((2, 5), bool)), rtol=1e-5, atol=1e-5)
    all_padding = encode(features, np.zeros((2, 9), bool))
    np.testing.assert_allclose(all_padding[0], all_padding[1], rtol=1e-6, atol=1e-6)
    assert np.isfinite(all_padding).all()


def test_equal_windows_as_one_number_or_as_a_list_and_in_bfloat16():
    features = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    expected = run_encoder(dict(window=(4,)), features)
    np.testing.assert_array_equal(run_encoder(dict(window=(4, 4, 4)), features), expected)
    bfloat16 = run_encoder(dict(window=(4,), dtype=jnp.bfloat16), features)
    assert bfloat16.dtype == np.float32
    np.testing.assert_allclose(bfloat16, expected, rtol=0, atol=0.15)


def test_a_key_draws_dropout():
    features = np.random.default_rng(0).normal(size=(64, 4, WIDTH)).astype(np.float32)
    first, again, other = (run_encoder(dict(window=(4, 6, 6)), features, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert abs((first == 0).mean() - 0.5) < 4 * np.sqrt(0.25 / first.size), "the head drops one half"


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, words",
    [
        (dict(window=(5,)), "model.window=5"),
        (dict(window=(2,)), "model.window=2"),
        (dict(window=(4, 6, 7)), "model.window=7"),
        (dict(window=(4, 4)), "model.window=(4, 4)"),
        (dict(window=(4.5,)), "model.window=4.5"),
        (dict(depth=0), "model.temporal_depth=0"),
        (dict(heads=5), "model.heads=5"),
        (dict(dropout=1.0), "model.temporal_dropout=1.0"),
        (dict(head_dropout=-0.1), "model.head_dropout=-0.1"),
    ],
)
def test_impossible_options_raise_an_error_of_one_sentence(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        encoder(**options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "shape, positions_and_mask",
    [
        ((2, 4, 8), {}),
        ((2, 0, WIDTH), {}),
        ((2, 4, WIDTH), dict(positions=np.zeros((2, 3), int))),
        ((2, 4, WIDTH), dict(mask=np.ones((1, 4), bool))),
    ],
)
def test_features_of_another_shape_raise_an_error(shape, positions_and_mask):
    graph, parameters = encoder()
    with pytest.raises(ConfigError, match="Frame features"):
        nnx.merge(graph, parameters)(np.zeros(shape, np.float32), **positions_and_mask)


def test_dropout_of_attention_weights_keeps_the_mean():
    graph, parameters = layer(4, dropout=0.5)
    series = draw_series(7)

    def draw(key):
        frame_rng, class_rng = LayerRng(key, jnp.zeros(())).split(2)
        return nnx.merge(graph, parameters).branch(series, frame_rng, class_rng)

    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 1000)))
    error = draws.std(axis=0) / len(draws) ** 0.5
    assert (error > 0).all(), "dropout acts on the weights of every token"
    assert (np.abs(draws.mean(axis=0) - run(graph, parameters, series)) < 5 * error).all()

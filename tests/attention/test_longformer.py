"""VTN's temporal encoder: window attention against its definition, the rule and Hugging Face's Longformer."""

import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sublayers import HEADS, WIDTH, attention, module
from tiny import quick_jit

from vidformers import ConfigError, build
from vidformers.attention.core import attend
from vidformers.attention.dictionary import HYBRIDS
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.layers.tokens import Noise
from vidformers.models.summary import count_macs
from vidformers.models.vtn import TemporalEncoder


@cache
def layer(window, hybrid=None, **options):
    dictionary = {} if hybrid is None else dict(external=5, hybrid=hybrid)
    return attention(LongformerAttention, WIDTH, HEADS, window, **dictionary, **options)


@cache
def encoder(width=WIDTH, heads=HEADS, **options):
    return module(lambda: TemporalEncoder(width, heads, rngs=nnx.Rngs(0), **options))


def draw_series(frames: int, hidden=(), clips: int = 1, seed: int = 0) -> FrameSequence:
    """Of `frames` frames, those in `hidden` padding in the last clip."""
    valid = np.ones((clips, 1 + frames), bool)
    valid[-1, [1 + frame for frame in hidden]] = False
    return FrameSequence(np.random.default_rng(seed).normal(size=(clips, 1 + frames, WIDTH)), valid)


def branch(graph, parameters, series):
    return nnx.merge(graph, parameters).branch(series)


# The definition


OPTIONS = [dict(), dict(tie_global=True), *(dict(hybrid=hybrid) for hybrid in HYBRIDS)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gathered_equals_masked_with_its_gradient(float64, options):
    # Every option on one length that no chunk divides; drawn lengths, windows and padding where there are none.
    phases = [Phase.explicit] if options else [Phase.explicit, Phase.generate]

    @settings(max_examples=5, phases=phases)
    @example(frames=11, window=6, hidden={3, 9, 10})
    @given(
        frames=st.integers(1, 20),
        window=st.integers(2, 8).map(lambda reach: 2 * reach),
        hidden=st.sets(st.integers(0, 19)),
    )
    def check(frames, window, hidden):
        series = draw_series(frames, [frame for frame in hidden if frame < frames], clips=2)
        cotangent = np.random.default_rng(1).normal(size=series.tokens.shape)

        @quick_jit
        def both(tokens):
            def one(masked):
                graph, parameters = layer(window, masked=masked, dtype=jnp.float64, **options)
                parameters = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), parameters)

                def loss(parameters, tokens):
                    out = nnx.merge(graph, parameters)(series._replace(tokens=tokens)).tokens
                    return (out * cotangent).sum(), out

                return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, tokens)

            return one(False), one(True)

        gathered, masked = both(series.tokens)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), gathered, masked)
        assert gathered[0][1].dtype == np.float64

    check()


# The rule


@pytest.mark.parametrize("tie_global", [False, True])
@pytest.mark.parametrize("frames, window, hidden", [(9, 4, ()), (7, 6, (2, 6)), (3, 8, (1,))])
def test_a_query_sees_exactly_its_window_and_the_class_token(frames, window, hidden, tie_global):
    graph, parameters = layer(window, tie_global=tie_global)
    series = draw_series(frames, hidden)
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)  # vanishes where all channels do

    def outputs(tokens):
        return branch(graph, parameters, series._replace(tokens=tokens))[0] @ mixture

    jacobian = quick_jit(jax.jacrev(outputs))(np.float32(series.tokens))[:, 0]
    expected = np.zeros((1 + frames, 1 + frames), bool)
    for query in range(1 + frames):
        keys = {k for k in range(frames) if query == 0 or abs(query - 1 - k) <= window // 2} - set(hidden)
        expected[query, [query, 0, *(1 + k for k in keys)]] = True  # its own token is its query
    np.testing.assert_array_equal(np.any(jacobian, axis=-1), expected)


@pytest.mark.parametrize("tie_global", [False, True])
def test_a_window_of_twice_the_length_is_full_attention(float64, tie_global):
    """For the class token only if it shares the projections of the frames."""
    frames = 6
    graph, parameters = layer(2 * frames, tie_global=tie_global, dtype=jnp.float64)
    series = draw_series(frames, [4], clips=2)

    def full(parameters, series):
        one = nnx.merge(graph, parameters)
        q, k, v = one._heads(one.qkv(series.tokens), 3)
        out = attend(q, k, v, series.valid[:, None, None])
        return one.out(out.reshape(2, 1 + frames, WIDTH))

    found = quick_jit(partial(branch, graph))(parameters, series)
    expected = quick_jit(full)(parameters, series)
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-10, atol=1e-12)
    assert np.allclose(found[:, 0], expected[:, 0], rtol=1e-10, atol=1e-12) == tie_global


def test_the_smallest_window_that_sees_all_is_full_attention():
    series = draw_series(6)
    found, expected = (quick_jit(partial(branch, layer(window)[0]))(layer(window)[1], series) for window in (10, 40))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tie_global", [False, True])
def test_every_frame_and_the_class_token_read_the_dictionary(tie_global):
    graph, parameters = layer(4, "combined", tie_global=tie_global)
    run = quick_jit(partial(branch, graph))
    for part in ("keys", "values"):
        other = {**parameters["dictionary"], part: parameters["dictionary"][part] + 1}
        change = run({**parameters, "dictionary": other}, draw_series(6)) - run(parameters, draw_series(6))
        assert np.abs(change).max(-1).min() > 1e-2


# Its cost


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
        run = quick_jit(lambda p, x: nnx.merge(graph, p)(x).tokens)
        return run.lower(nnx.to_pure_dict(state), series).compile().memory_analysis().temp_size_in_bytes

    assert 0 < memory(8192) < 2.1 * memory(4096)


def test_far_frames_change_nothing_in_eight_thousand():
    graph, parameters = layer(18)
    run = quick_jit(partial(branch, graph))
    series = draw_series(8192)
    found, alone = (run(parameters, series._replace(valid=np.arange(8193)[None] < frames)) for frames in (8193, 100))
    np.testing.assert_allclose(found[0, 1:91], alone[0, 1:91], rtol=1e-5, atol=1e-5)


# Hugging Face


def linear(arrays, *names):
    """Linear layers side by side: torch's (out, in) -> kernel (in, out)."""
    return {
        "kernel": np.concatenate([arrays.pop(f"{name}.weight").T for name in names], axis=1),
        "bias": np.concatenate([arrays.pop(f"{name}.bias") for name in names]),
    }


def norm(arrays, name):
    return {"scale": arrays.pop(f"{name}.weight"), "bias": arrays.pop(f"{name}.bias")}


def block(arrays, i):
    own, layer = f"encoder.layer.{i}.attention", f"encoder.layer.{i}"
    return {
        0: {
            "qkv": linear(arrays, *(f"{own}.self.{part}" for part in ("query", "key", "value"))),
            "q_global": linear(arrays, f"{own}.self.query_global"),
            "kv_global": linear(arrays, f"{own}.self.key_global", f"{own}.self.value_global"),
            "out": linear(arrays, f"{own}.output.dense"),
            "norm": norm(arrays, f"{own}.output.LayerNorm"),
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
    """Windows 4, 4 and 8; frame numbers beyond the table; five frames of the second clip are padding."""
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
    graph, drawn = encoder(window=(4, 4, 8))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), drawn, mapped)

    @quick_jit
    def run(parameters, features):
        one = nnx.merge(graph, parameters)
        return one.encode(features, None, positions, mask), one(features, positions=positions, mask=mask)

    found, read = run(mapped, features)
    seen = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(found[seen], tokens[seen], rtol=0, atol=1e-4)
    np.testing.assert_allclose(read, output, rtol=0, atol=1e-4)


# The encoder


def test_parameters_are_those_of_the_paper_model():
    def count(make):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))

    frames = count(lambda: build("vit", num_classes=400, rngs=nnx.Rngs(0)))  # backbone and the last linear map
    three, one = (count(lambda: TemporalEncoder(768, 12, depth=depth, rngs=nnx.Rngs(0))) for depth in (3, 1))
    assert frames + three == 113_502_352
    assert three - one == 2 * 8_859_648


def test_by_default_frames_are_all_valid_and_numbered_from_zero():
    graph, parameters = encoder(window=(4,))
    run = quick_jit(lambda p, x, *where: nnx.merge(graph, p)(x, None, *where))
    features = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    count, valid = np.tile(np.arange(5), (2, 1)), np.ones((2, 5), bool)
    expected = run(parameters, features)
    assert expected.shape == (2, WIDTH) and expected.dtype == np.float32
    for positions in (count, count + 286):
        np.testing.assert_array_equal(run(parameters, features, positions, valid), expected)
    assert np.abs(run(parameters, features, count + 1, valid) - expected).max() > 1e-3
    assert np.abs(run(parameters, features[:, ::-1], count, valid) - expected).max() > 1e-3


def test_without_positions_a_full_window_knows_no_order_and_a_narrow_one_no_direction():
    features = np.random.default_rng(0).normal(size=(1, 8, WIDTH)).astype(np.float32)
    orders = features, features[:, ::-1], features[:, [3, 0, 6, 2, 7, 1, 5, 4]]
    for window, shuffled_is_same in ((16, True), (4, False)):
        graph, parameters = encoder(window=(window,))
        run = quick_jit(lambda p, x, graph=graph: nnx.merge(graph, p)(x, positions=jnp.zeros((1, 8), int)))
        expected, backward, shuffled = (run(parameters, each) for each in orders)
        np.testing.assert_allclose(backward, expected, rtol=1e-4, atol=1e-5)
        assert np.allclose(shuffled, expected, rtol=1e-4, atol=1e-5) == shuffled_is_same


def test_padding_changes_nothing():
    graph, parameters = encoder(window=(4, 6, 6))
    run = quick_jit(lambda p, x, mask: nnx.merge(graph, p)(x, mask=mask))
    features = np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32)
    found = run(parameters, features, np.tile(np.arange(9) < 5, (2, 1)))
    np.testing.assert_allclose(found, run(parameters, features[:, :5], np.ones((2, 5), bool)), rtol=1e-5, atol=1e-5)
    nothing = run(parameters, features, np.zeros((2, 9), bool))
    np.testing.assert_allclose(nothing[0], nothing[1], rtol=1e-6, atol=1e-6)
    assert np.isfinite(nothing).all()


def test_equal_windows_as_one_number_or_as_a_list_and_in_bfloat16():
    features = np.random.default_rng(0).normal(size=(2, 6, WIDTH)).astype(np.float32)

    def run(**options):
        graph, parameters = encoder(**options)
        return quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, features)

    expected = run(window=(4,))
    np.testing.assert_array_equal(run(window=(4, 4, 4)), expected)
    small = run(window=(4,), dtype=jnp.bfloat16)
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, expected, rtol=0, atol=0.15)


def test_a_key_draws_dropout():
    graph, parameters = encoder(window=(4, 6, 6))
    run = quick_jit(lambda p, x, key: nnx.merge(graph, p)(x, key))
    features = np.random.default_rng(0).normal(size=(64, 4, WIDTH)).astype(np.float32)
    first, again, other = (run(parameters, features, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert abs((first == 0).mean() - 0.5) < 4 * np.sqrt(0.25 / first.size), "the head drops one half"


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
def test_mistakes_are_refused_in_a_sentence(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        encoder(**options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "shape, where",
    [
        ((2, 4, 8), {}),
        ((2, 0, WIDTH), {}),
        ((2, 4, WIDTH), dict(positions=np.zeros((2, 3), int))),
        ((2, 4, WIDTH), dict(mask=np.ones((1, 4), bool))),
    ],
)
def test_features_of_another_shape_are_refused(shape, where):
    graph, parameters = encoder()
    with pytest.raises(ConfigError, match="Frame features"):
        nnx.merge(graph, parameters)(np.zeros(shape, np.float32), **where)


def test_attention_weights_are_dropped_out_and_stay_right_on_average():
    graph, parameters = layer(4, dropout=0.5)
    series = draw_series(7)

    def draw(key):
        of_frames, of_token = Noise(key, jnp.zeros(())).split(2)
        return nnx.merge(graph, parameters).branch(series, of_frames, of_token)

    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 1000)))
    error = draws.std(axis=0) / len(draws) ** 0.5
    assert (error > 0).all(), "every token reads by weights that are dropped out"
    assert (np.abs(draws.mean(axis=0) - branch(graph, parameters, series)) < 5 * error).all()

"""Which keys a query sees: against the definition, against the paper's rule, and between schemes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sublayers import HEADS, WIDTH, branch, draw_tokens, influence, layer, module, run
from tiny import clips, quick_jit
from tiny import make as make_model

from vidformers import ConfigError
from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import attend
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.layers.tokens import Noise, Tokens, add_branch, dropout

PARTS = {
    "read_and_read_from": dict(),
    "keys": dict(class_queries=False),
    "absent": dict(class_keys=False, class_queries=False),
}


@cache
def class_attention():
    return module(lambda: ClassAttention(WIDTH, HEADS, rngs=nnx.Rngs(0)))


# The definition


GRIDS = st.tuples(st.integers(2, 3), st.integers(1, 5), st.integers(3, 5))
CASES = [(scheme, part, 1) for scheme in ("frame", "time", "joint", "motion") for part in PARTS]
CASES += [(scheme, "keys", 0) for scheme in ("frame", "time", "joint", "motion")]
CASES += [("frame", part, "frames") for part in ("read_and_read_from", "keys")]


@pytest.mark.parametrize("scheme, part, count", CASES)
def test_gathered_equals_masked_with_its_gradient(float64, scheme, part, count):
    # Every case on one grid that blocks of two do not divide; drawn grids where the class token does most.
    drawn = part == "read_and_read_from" and count == 1
    phases = [Phase.explicit, Phase.generate] if drawn else [Phase.explicit]

    @settings(max_examples=3 if scheme == "motion" else 1, phases=phases)
    @example(grid=(2, 3, 5), m=2)
    @given(grid=GRIDS, m=st.integers(1, 6))
    def check(grid, m):
        chosen = {"frame": Frame(), "time": Time(), "joint": Joint(), "motion": Motion(m)}[scheme]
        tokens = draw_tokens(grid, grid[0] if count == "frames" else count, clips=2)
        cotangent = draw_tokens(grid, tokens.class_tokens.shape[1], clips=2, seed=1)

        @quick_jit
        def both(tokens):
            def one(masked):
                graph, parameters = layer(chosen, masked=masked, dtype=jnp.float64, **PARTS[part])
                parameters = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), parameters)

                def loss(parameters, tokens):
                    out = nnx.merge(graph, parameters)(tokens)
                    return sum((a * b).sum() for a, b in zip(out, cotangent, strict=True)), out

                return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, tokens)

            return one(False), one(True)

        gathered, masked = both(tokens)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), gathered, masked)
        assert gathered[0][1].patches.dtype == np.float64

    check()


# The paper's rule


def key_set(scheme, patch, grid):
    """The patches that `patch` (t, y, x) reads, from the index sets of MEViT's equations 3, 6, 7 and 8."""
    frames, rows, columns = map(range, grid)
    t, y, x = patch
    if scheme == "joint":
        return {(f, r, c) for f in frames for r in rows for c in columns}
    if scheme == "frame":
        return {(t, r, c) for r in rows for c in columns}
    if scheme == "time":
        return {(f, y, x) for f in frames}
    top, left = y - y % scheme, x - x % scheme  # a block of side M, cut off at the end of the grid
    return {
        (f, r, c)
        for f in frames
        for r in range(top, top + scheme)
        for c in range(left, left + scheme)
        if r in rows and c in columns
    }


def make_scheme(scheme):
    return {"frame": Frame(), "time": Time(), "joint": Joint()}.get(scheme) or Motion(scheme)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "scheme, grid",
    [
        ("frame", (2, 4, 4)),
        ("time", (2, 4, 4)),
        ("joint", (2, 4, 4)),
        (1, (2, 3, 3)),
        (2, (2, 4, 4)),
        (3, (2, 4, 4)),
        (3, (2, 5, 5)),
    ],
)
def test_a_query_sees_exactly_its_key_set(scheme, grid, part):
    patches, classes = influence(*layer(make_scheme(scheme), **PARTS[part]), draw_tokens(grid, 1))
    expected = np.zeros((*grid, *grid), bool)
    for patch in np.ndindex(grid):
        for key in key_set(scheme, patch, grid) | {patch}:
            expected[(*patch, *key)] = True
    np.testing.assert_array_equal(patches[0].reshape(expected.shape), expected)
    assert (patches[1] == (part != "absent")).all(), "the class token is a key of every patch, or of none"
    if part == "read_and_read_from":
        assert classes[0].all() and classes[1].all(), "a class token that queries reads the whole clip"
    else:
        assert classes is None


def test_a_class_token_a_frame_stays_in_its_frame():
    grid = (3, 2, 2)
    patches, classes = influence(*layer(Frame()), draw_tokens(grid, 3))
    same = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(classes[1].reshape(3, 3), same)
    np.testing.assert_array_equal(classes[0].reshape(3, 3, 4).all(-1), same)
    np.testing.assert_array_equal(classes[0].reshape(3, 3, 4).any(-1), same)
    np.testing.assert_array_equal(patches[1].reshape(3, 4, 3).all(1), same)
    np.testing.assert_array_equal(patches[1].reshape(3, 4, 3).any(1), same)


def softmax_attention(parameters, queries, keys):
    """Multi-head attention of LN queries (n d) over LN keys (m d), W_O included, written plainly."""

    def norm(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * parameters["norm"]["scale"] + parameters["norm"]["bias"]

    kernel, bias = parameters["qkv"]["kernel"], parameters["qkv"]["bias"]
    q, k, v = (
        norm(x) @ kernel[:, i * WIDTH :][:, :WIDTH] + bias[i * WIDTH :][:WIDTH]
        for i, x in enumerate((queries, keys, keys))
    )
    out = np.zeros((len(queries), WIDTH))
    for h in range(HEADS):
        part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(WIDTH // HEADS))
        out[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
    return out @ parameters["out"]["kernel"] + parameters["out"]["bias"]


@pytest.mark.parametrize("m, grid", [(3, (2, 4, 5)), (2, (2, 5, 4)), (3, (1, 7, 3))])
def test_padded_blocks_equal_ragged_ones(float64, m, grid):
    graph, parameters = layer(Motion(m), class_queries=False, dtype=jnp.float64)
    tokens = draw_tokens(grid, 1)
    found, _ = run(graph, parameters, tokens)
    for y in range(0, grid[1], m):
        for x in range(0, grid[2], m):
            block = tokens.patches[0, :, y : y + m, x : x + m]
            flat = block.reshape(-1, WIDTH)
            expected = softmax_attention(parameters, flat, np.concatenate([tokens.class_tokens[0], flat]))
            expected = expected.reshape(block.shape)
            np.testing.assert_allclose(found[0, :, y : y + m, x : x + m], expected, rtol=1e-9, atol=1e-12)


def test_blocks_of_three_on_fourteen_by_fourteen_hold_nine_six_or_four():
    members = Motion(3).fold(np.ones((1, 1, 14, 14), bool))[0].sum(-1)
    assert dict(zip(*np.unique(members, return_counts=True), strict=True)) == {9: 16, 6: 8, 4: 1}


# Between schemes


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS)
def test_motion_in_blocks_of_one_is_time_attention(options):
    same(Motion(1), Time(), options)


@pytest.mark.parametrize("m", [4, 7])
def test_motion_in_one_block_is_joint_attention(m):
    same(Motion(m), Joint(), dict())


def test_without_querying_motion_in_one_block_is_joint_attention_on_patches():
    tokens = draw_tokens((2, 4, 4), 1)
    motion, none = run(*layer(Motion(4), class_queries=False), tokens)
    joint, _ = run(*layer(Joint()), tokens)
    assert none is None
    np.testing.assert_allclose(motion, joint, rtol=1e-5, atol=1e-5)


def same(first, second, options):
    tokens = draw_tokens((2, 4, 4), 1)
    found, expected = (run(*layer(scheme, **options), tokens) for scheme in (first, second))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


def test_extra_projection_follows_the_output_projection(float64):
    graph, parameters = layer(Time(), extra_projection=True, dtype=jnp.float64)
    plain = {name: leaf for name, leaf in parameters.items() if name != "extra"}
    tokens = draw_tokens((2, 2, 2), 1)
    extra = parameters["extra"]
    without = run(layer(Time(), dtype=jnp.float64)[0], plain, tokens)
    for found, before in zip(run(graph, parameters, tokens), without, strict=True):
        np.testing.assert_allclose(found, before @ extra["kernel"].astype(float) + extra["bias"], rtol=1e-9)


# Class attention


def test_class_attention_leaves_patches_bit_for_bit():
    tokens = jax.tree.map(np.float32, draw_tokens((2, 3, 3), 1, clips=2))
    graph, parameters = class_attention()
    out = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, tokens)
    np.testing.assert_array_equal(out.patches, tokens.patches)
    assert np.abs(out.class_tokens - tokens.class_tokens).max() > 0.1


def test_class_attention_reads_every_patch_and_not_the_class_token():
    graph, parameters = class_attention()
    still = {**parameters, "q": jax.tree.map(np.zeros_like, parameters["q"])}  # even weights for any query

    def update(patches, classes, parameters):
        tokens = Tokens(patches, classes)
        return (nnx.merge(graph, parameters)(tokens).class_tokens - tokens.class_tokens)[0, 0]

    tokens = jax.tree.map(np.float32, draw_tokens((2, 3, 3), 1))
    jacobian = quick_jit(jax.jacrev(update, argnums=(0, 1)))
    of_patches, of_class = jacobian(*tokens, parameters)
    assert np.abs(of_patches).max(axis=(0, 1, -1)).min() > 0
    assert np.abs(of_class).max() > 1e-2, "through its query"
    assert np.abs(jacobian(*tokens, still)[1]).max() < 1e-5, "and through nothing else (x + dx - x rounds)"


# The core


def test_attention_weights_sum_to_one_and_a_mask_hides():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 6, HEADS, 8)).astype(np.float32)
    np.testing.assert_allclose(attend(q, k, np.ones_like(v)), 1, rtol=1e-6)
    mask = np.array([True, True, False, True, False, False])
    np.testing.assert_allclose(attend(q, k, v, mask), attend(q, k[:, mask], v[:, mask]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attend(q, k, np.ones_like(v), mask), 1, rtol=1e-6)


def test_softmax_is_taken_in_float32_below_it():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 64, 1, 8)).astype(jnp.bfloat16)
    weights = [
        eqn.invars[0].aval.dtype
        for eqn in jax.make_jaxpr(attend)(q, k, v).eqns
        if eqn.primitive.name == "exp" or "softmax" in str(eqn.params.get("name", ""))
    ]
    assert weights and set(weights) == {jnp.dtype("float32")}
    assert attend(q, k, v).dtype == jnp.bfloat16


def test_a_dropped_branch_is_dropped_for_a_whole_clip_and_kept_in_the_mean():
    tokens = Tokens(jnp.zeros((256, 1, 2, 2, 3)), jnp.zeros((256, 1, 3)))
    out = add_branch(
        tokens,
        jnp.ones_like(tokens.patches),
        jnp.ones_like(tokens.class_tokens),
        0.0,
        Noise(jax.random.key(0), jnp.float32(0.25)),
    )
    whole = np.concatenate([out.patches.reshape(256, -1), out.class_tokens.reshape(256, -1)], axis=1)
    assert (whole == whole[:, :1]).all(), "patches and class token share the draw"
    np.testing.assert_allclose(np.unique(whole), [0, 4 / 3], rtol=1e-6)
    assert abs((whole[:, 0] > 0).mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 256)


def test_dropout_keeps_the_mean():
    x = dropout(jnp.ones(4096), 0.25, Noise(jax.random.key(0), jnp.zeros(())))
    np.testing.assert_allclose(np.unique(x), [0, 4 / 3], rtol=1e-6)
    assert abs(x.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / 4096)


def test_mistakes_are_refused_in_a_sentence():
    for make, words in (
        (lambda: Motion(0), "model.block_size=0"),
        (lambda: layer(Time(), class_keys=False), "class token"),
        (lambda: branch(*layer(Time()), draw_tokens((2, 3, 3), 2)), "2 class tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


# Backends


@pytest.mark.parametrize(
    "options",
    [
        dict(name="mevit", block_size=3),
        dict(name="havit", dictionary=3),
        dict(name="msca"),
        dict(name="havit", dictionary=3, hybrid="multi_view"),
        dict(name="joint"),
    ],
    ids=str,
)
def test_a_fused_program_computes_what_einsums_do(options):
    graph, parameters = make_model(**options)
    fused, _ = make_model(**options, backend="xla")
    expected, found = (
        quick_jit(lambda p, graph=each: nnx.merge(graph, p)(clips(2)))(parameters) for each in (graph, fused)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert str(jax.make_jaxpr(nnx.merge(fused, parameters))(clips(2))) != str(
        jax.make_jaxpr(nnx.merge(graph, parameters))(clips(2))
    )


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("vit", dict(backend="flash"), "model.backend='flash' must be one of"),
        ("vit", dict(backend="cudnn"), "model.backend=cudnn is for NVIDIA's GPUs"),
        ("vit", dict(backend="xla", kernel="relu"), "model.backend=xla computes softmax, not model.kernel=relu"),
        ("swin", dict(backend="xla"), "model.backend=xla is not one that Swin's window attention has"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_model(name, **options)

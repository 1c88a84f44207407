"""Attention against plain loops, between schemes, and the code that all schemes share.

tests/attention/test_registry.py compares every scheme with its keys and with its masked form.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxprs import equations
from schemes import Near, Past
from sublayers import HEADS, WIDTH, branch, draw_tokens, layer, module, run
from tiny import clips, quick_jit
from tiny import make as make_model

from vidformers import ConfigError
from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import compute_attention
from vidformers.attention.groups import group_numbers
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.layers.tokens import LayerRng, Tokens, add_branch, dropout

CLASS_TOKEN = {
    "keys_and_queries": dict(),
    "keys": dict(class_queries=False),
    "absent": dict(class_keys=False, class_queries=False),
}


@cache
def class_attention():
    return module(lambda: ClassAttention(WIDTH, HEADS, rngs=nnx.Rngs(0)))


# Plain loops


def softmax_attention(parameters, queries, keys):
    """Returns multi-head attention of LN queries (n d) over LN keys (m d), with W_O, in NumPy."""

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
        head = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        weights = np.exp(q[:, head] @ k[:, head].T / np.sqrt(WIDTH // HEADS))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
    return out @ parameters["out"]["kernel"] + parameters["out"]["bias"]


@pytest.mark.parametrize("m, grid", [(3, (2, 4, 5)), (2, (2, 5, 4)), (3, (1, 7, 3)), (6, (3, 1, 5))])
def test_padded_blocks_equal_smaller_blocks_at_the_edge(float64, m, grid):
    graph, parameters = layer(Motion(m), class_queries=False, dtype=jnp.float64)
    tokens = draw_tokens(grid, 1)
    maps = np.asarray(run(graph, parameters, tokens)[0]).reshape(tokens.maps.shape)
    for y in range(0, grid[1], m):
        for x in range(0, grid[2], m):
            block = tokens.maps[0, :, y : y + m, x : x + m]
            flat = block.reshape(-1, WIDTH)
            expected = softmax_attention(parameters, flat, np.concatenate([tokens.class_tokens[0], flat]))
            expected = expected.reshape(block.shape)
            np.testing.assert_allclose(maps[0, :, y : y + m, x : x + m], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.quick
def test_blocks_of_three_on_fourteen_by_fourteen_hold_nine_six_or_four():
    sizes = np.sum(np.asarray(group_numbers(Motion(3), (1, 14, 14))) > 0, axis=-1)
    assert dict(zip(*np.unique(sizes, return_counts=True), strict=True)) == {9: 16, 6: 8, 4: 1}


# Between schemes


def assert_same(first, second, options):
    tokens = draw_tokens((2, 4, 4), 1)
    outputs = (run(*layer(scheme, **options), tokens) for scheme in (first, second))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *outputs)


@pytest.mark.parametrize("options", CLASS_TOKEN.values(), ids=CLASS_TOKEN)
def test_motion_in_blocks_of_one_is_time_attention(options):
    assert_same(Motion(1), Time(), options)


@pytest.mark.parametrize("m", [4, 7])
def test_motion_in_one_block_is_joint_attention(m):
    assert_same(Motion(m), Joint(), dict())


def test_without_querying_motion_in_one_block_is_joint_attention_on_patches():
    tokens = draw_tokens((2, 4, 4), 1)
    motion, class_tokens = run(*layer(Motion(4), class_queries=False), tokens)
    joint, _ = run(*layer(Joint()), tokens)
    assert class_tokens is None
    np.testing.assert_allclose(motion, joint, rtol=1e-5, atol=1e-5)


def test_extra_projection_follows_the_output_projection(float64):
    graph, parameters = layer(Time(), extra_projection=True, dtype=jnp.float64)
    plain = {name: leaf for name, leaf in parameters.items() if name != "extra"}
    tokens = draw_tokens((2, 2, 2), 1)
    extra = parameters["extra"]
    without = run(layer(Time(), dtype=jnp.float64)[0], plain, tokens)
    for with_extra, before in zip(run(graph, parameters, tokens), without, strict=True):
        np.testing.assert_allclose(with_extra, before @ extra["kernel"].astype(float) + extra["bias"], rtol=1e-9)


# Class attention


def test_class_attention_leaves_patches_bit_for_bit():
    tokens = jax.tree.map(np.float32, draw_tokens((2, 3, 3), 1, clips=2))
    graph, parameters = class_attention()
    out = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, tokens)
    np.testing.assert_array_equal(out.patches, tokens.patches)
    assert np.abs(out.class_tokens - tokens.class_tokens).max() > 0.1


def test_class_attention_reads_every_patch_and_not_the_class_token():
    graph, parameters = class_attention()
    constant_query = {**parameters, "q": jax.tree.map(np.zeros_like, parameters["q"])}

    def update(tokens, parameters):
        return (nnx.merge(graph, parameters)(tokens).class_tokens - tokens.class_tokens)[0, 0]

    tokens = jax.tree.map(np.float32, draw_tokens((2, 3, 3), 1))
    jacobian = quick_jit(jax.jacrev(update))
    by = jacobian(tokens, parameters)
    assert np.abs(by.patches).max(axis=(0, 1, -1)).min() > 0
    assert np.abs(by.class_tokens).max() > 1e-2, "the class token acts through its query"
    by_class_token = jacobian(tokens, constant_query).class_tokens
    assert np.abs(by_class_token).max() < 1e-5, "it acts through nothing else (x + dx - x rounds)"


# The shared code


@pytest.mark.quick
def test_attention_weights_sum_to_one_and_a_mask_hides():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 6, HEADS, 8)).astype(np.float32)
    np.testing.assert_allclose(compute_attention(q, k, np.ones_like(v)), 1, rtol=1e-6)
    mask = np.array([True, True, False, True, False, False])
    np.testing.assert_allclose(
        compute_attention(q, k, v, mask), compute_attention(q, k[:, mask], v[:, mask]), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(compute_attention(q, k, np.ones_like(v), mask), 1, rtol=1e-6)


def test_softmax_is_taken_in_float32_below_it():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 64, 1, 8)).astype(jnp.bfloat16)
    program = jax.make_jaxpr(compute_attention)(q, k, v)
    exponents = {eqn.invars[0].aval.dtype for eqn in equations(program) if eqn.primitive.name == "exp"}
    assert exponents == {jnp.dtype("float32")}
    assert compute_attention(q, k, v).dtype == jnp.bfloat16


def test_a_dropped_branch_is_dropped_for_a_whole_clip_and_kept_in_the_mean():
    tokens = Tokens(jnp.zeros((256, 1, 4, 3)), jnp.zeros((256, 1, 3)), (1, 2, 2))
    branch = jnp.ones_like(tokens.patches), jnp.ones_like(tokens.class_tokens)
    out = add_branch(tokens, branch, 0.0, LayerRng(jax.random.key(0), jnp.float32(0.25)))
    rows = np.concatenate([out.patches.reshape(256, -1), out.class_tokens.reshape(256, -1)], axis=1)
    assert (rows == rows[:, :1]).all(), "patches and class token of a clip share the draw"
    np.testing.assert_allclose(np.unique(rows), [0, 4 / 3], rtol=1e-6)
    assert abs((rows[:, 0] > 0).mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 256)


def test_dropout_keeps_the_mean():
    x = dropout(jnp.ones(4096), 0.25, LayerRng(jax.random.key(0), jnp.zeros(())))
    np.testing.assert_allclose(np.unique(x), [0, 4 / 3], rtol=1e-6)
    assert abs(x.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / 4096)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Motion(0), "model.block_size=0 is too small"),
        (lambda: layer(Time(), class_keys=False), "class_queries=True needs class_keys=True"),
        (lambda: branch(*layer(Time()), draw_tokens((2, 3, 3), 2)), "2 class tokens cannot be distributed to 9 groups"),
        (lambda: layer(Time(), kernel="elu"), "model.kernel='elu' is unknown"),
        (lambda: layer(Past()), "Past is causal, but class_keys=True lets every frame attend to a class token"),
        (lambda: layer(Near(), kernel="relu"), "model.kernel=relu sums over all keys of a group, so it cannot hide"),
    ],
)
def test_impossible_options_raise_an_error_of_one_sentence(make, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        make()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


# Backends


def test_a_model_runs_the_backend_of_its_config():
    programs = []
    for backend in ("einsum", "xla"):
        graph, parameters = make_model("joint", backend=backend)
        programs.append(str(jax.make_jaxpr(nnx.merge(graph, parameters))(clips(2))))
    assert programs[0] != programs[1]


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("vit", dict(backend="flash"), "model.backend='flash' is unknown"),
        ("vit", dict(backend="cudnn"), "model.backend=cudnn does not support model.dtype=float32"),
        ("vit", dict(backend="xla", kernel="relu"), "model.backend=xla computes softmax, not model.kernel=relu"),
        ("swin", dict(backend="cudnn"), "model.backend=cudnn does not support model.dtype=float32"),
        ("stat", dict(backend="pallas", kernel="relu"), "model.backend=pallas computes softmax, not model.kernel=relu"),
        ("cvt", dict(backend="cudnn", dtype="bfloat16", width=12), "model.width / model.heads=12"),
        ("vtn:resnet", dict(backend="flash"), "model.backend='flash' is unknown"),
    ],
)
def test_an_impossible_backend_raises_an_error(name, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_model(name, **options)

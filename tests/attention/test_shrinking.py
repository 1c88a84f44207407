"""Shrinking attention (STAT) against its masked form, and the frames that a query sees.

tests/models/test_papers.py compares it with its equations.
"""

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
    branch,
    draw_tokens,
    output_and_gradients,
)
from tiny import quick_jit

from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.parallel.target import traced_for

# The modules of STAT's Table 1 beside current attention.
CURRENT, SHORT, LONG = dict(window=1, long_key="none"), dict(long_key="none"), dict(window=1)


def options_of(**given):
    return {**dict(kv_stride=2, window=3, long_key="class", pool_queries=False), **given}


@cache
def layer(**options):
    """(graph, random parameters), the same ones whatever the options."""
    return attention(ShrinkingAttention, WIDTH, HEADS, **options)


def draw(grid, clips: int = 1):
    return draw_tokens(grid, grid[0], clips)


FORMS = pytest.mark.parametrize(
    "options, grid",
    [
        (dict(), (4, 5, 7)),
        (CURRENT | dict(kernel="relu", pool_queries=True), (4, 6, 6)),
        (SHORT, (3, 4, 4)),
        (LONG | dict(external=3, hybrid="multi_view", kernel="relu"), (3, 4, 4)),
        (dict(long_key="mean", external=3, hybrid="combined"), (3, 4, 4)),
        (dict(window=7, kv_stride=4, pool_queries=True), (3, 8, 8)),
        (dict(pool_norm="mvit", pool_queries=True), (3, 4, 4)),
    ],
    ids=str,
)


@FORMS
def test_gathered_equals_masked_with_its_gradient(float64, options, grid):
    assert_gathered_equals_masked(
        lambda masked: layer(dtype=jnp.float64, masked=masked, **options_of(**options)), draw(grid, clips=2)
    )


@FORMS
def test_the_layout_for_tpus_computes_the_same(float64, options, grid):
    form, tokens = layer(dtype=jnp.float64, **options_of(**options)), draw(grid, clips=2)
    expected = quick_jit(partial(output_and_gradients, *form))(tokens)
    with traced_for("tpu"):
        found = quick_jit(partial(output_and_gradients, *form))(tokens)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), found, expected)


def covered(size, stride):
    """The rows, of `size`, that a 3-wide kernel of that stride reads."""
    return [any(abs(row - centre) <= 1 for centre in range(0, size - stride + 1, stride)) for row in range(size)]


# Every window with every key, and either stride with every window and every key.
STRIDES = [(4, False), (2, True)]
SEEN = [
    (window, long_key, *STRIDES[(i + j) % 2])
    for i, window in enumerate([1, 3, 5])
    for j, long_key in enumerate(["none", "class", "mean"])
]


@pytest.mark.parametrize("window, long_key, kv_stride, pool_queries", SEEN)
def test_a_query_sees_exactly_its_frames(window, long_key, kv_stride, pool_queries):
    t, side = 4, 8
    graph, parameters = layer(window=window, long_key=long_key, kv_stride=kv_stride, pool_queries=pool_queries)
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)

    def outputs(tokens):
        patches, classes = branch(graph, parameters, tokens)
        maps = patches[0].reshape(t, side // (2 if pool_queries else 1), -1, WIDTH)
        return maps[:, 1, 1] @ mixture, classes[0] @ mixture  # one patch of each frame, and its class token

    tokens = jax.tree.map(np.float32, draw((t, side, side)))
    seen = jax.tree.map(lambda j: np.any(j, axis=-1)[:, 0], quick_jit(jax.jacrev(outputs))(tokens))
    frames = np.arange(t)
    near = np.abs(frames[:, None] - frames) <= window // 2
    rows = np.array(covered(side, kv_stride))
    by_keys = near[:, :, None, None] & (rows[:, None] & rows)
    if long_key == "mean":
        by_keys[:] = True
    own = np.zeros((t, t, side, side), bool)
    window_of_query = slice(1, 4) if pool_queries else slice(1, 2)
    own[frames, frames, window_of_query, window_of_query] = True
    np.testing.assert_array_equal(seen[0].patches.reshape(own.shape), by_keys | own)
    np.testing.assert_array_equal(seen[1].patches.reshape(own.shape), np.broadcast_to(by_keys, own.shape))
    all_classes = np.full((t, t), long_key == "class")
    np.testing.assert_array_equal(seen[0].class_tokens, all_classes)
    np.testing.assert_array_equal(seen[1].class_tokens, all_classes | np.eye(t, dtype=bool))


@pytest.mark.quick
def test_the_first_stage_reads_400_of_784_patches():
    assert sum(covered(28, 4)) ** 2 == 400


@pytest.mark.quick
@pytest.mark.parametrize("side, stride, counts", [(28, 4, (49, 16, 1)), (28, 2, (196, 49, 1)), (7, 1, (49, 16, 1))])
def test_keys_have_the_published_counts(side, stride, counts):
    graph, parameters = layer(**options_of(kv_stride=stride))

    def levels(parameters, *tokens):
        module = nnx.merge(graph, parameters)
        return [level for level, _ in module.levels(*tokens, module.pool)]

    shapes = jax.eval_shape(levels, parameters, np.zeros((2, 1, 8, side, side, WIDTH)), np.zeros((2, 1, 8, WIDTH)))
    assert tuple(level.shape[3] for level in shapes) == counts
    assert counts[0] + 2 * counts[1] + 8 * counts[2] == 89 or side == 28 and stride == 2

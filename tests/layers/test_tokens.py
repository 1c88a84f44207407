"""Tokens whose class tokens are rows of their frames, and dropout on each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidformers.layers.tokens import LayerRng, Tokens, dropout
from vidformers.parallel.target import traced_for

# Shapes, the axis that `kept_elements` takes in parts, and the size of a part.
TPU_PARTS = [
    ("tpu", (2, 3, 20, 768), 3, 256),
    ("tpu", (5, 7, 512), 2, 128),
    ("tpu", (300, 301), 0, 96),
    ("tpu", (4, 196, 96), 1, 64),
    ("tpu", (900, 1, 192), 2, 128),
]


@pytest.mark.quick
@pytest.mark.parametrize("count", [3, 1], ids=["one per frame", "one per clip"])
def test_joined_tokens_split_into_what_they_were_and_drop_the_same_elements(count):
    rng = np.random.default_rng(0)
    patches, class_tokens = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4, 6), (2, count, 6)))
    tokens = Tokens(jnp.asarray(patches), jnp.asarray(class_tokens), (3, 2, 2))
    joined = tokens.join()
    assert joined.class_rows == 1 and tokens.class_rows == 0 and joined.class_tokens.size == 0
    split = joined.split()
    np.testing.assert_array_equal(split.patches, patches)
    np.testing.assert_array_equal(split.class_tokens, class_tokens)
    keys = [LayerRng(jax.random.key(i), jnp.zeros(())) for i in range(2)]
    dropped = joined.replace(patches=dropout(joined.patches, 0.5, *keys)).split()
    np.testing.assert_array_equal(dropped.patches, dropout(tokens.patches, 0.5, keys[0]))
    np.testing.assert_array_equal(dropped.class_tokens, dropout(tokens.class_tokens, 0.5, keys[1]))


@pytest.mark.quick
def test_tokens_by_place_have_the_frames_of_a_place_side_by_side():
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 20, 6)))
    tokens = Tokens(patches, jnp.zeros((2, 1, 6)), (3, 4, 5))
    by_place = tokens.by_place()
    assert by_place.is_by_place and not tokens.is_by_place and by_place.class_rows == tokens.class_rows == 0
    np.testing.assert_array_equal(by_place.patches[:, 0, 3 * 7 + 2], patches[:, 2, 7])
    np.testing.assert_array_equal(by_place.by_frame().patches, patches)


@pytest.mark.quick
@pytest.mark.parametrize("platform, shape, axis, part", [("cpu", (300, 301), 1, 100), *TPU_PARTS])
def test_dropout_keeps_the_mean_and_drops_elements_independently(platform, shape, axis, part):
    """Within five standard deviations, in two calls with one key and one with another.

    On TPUs an axis is taken in parts, whose bits come from the same counters.
    """
    rate, x = 0.3, jnp.ones(shape)
    with traced_for(platform):
        first, again, other = (np.asarray(dropout(x, rate, LayerRng(jax.random.key(i), 0.0))) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    kept = first != 0
    np.testing.assert_allclose(first[kept], 1 / (1 - rate), rtol=1e-4)
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    # Of two independent elements, both are kept with probability (1 - rate)^2: in another call, in the next column or
    # row, and in another part.
    size = shape[axis]
    apart = [(i, 1) for i in range(x.ndim) if shape[i] > 1] + [(axis, d) for d in range(part, size, part)]
    pairs = [(kept, other != 0)] + [
        (kept.take(range(shape[i] - by), i), kept.take(range(by, shape[i]), i)) for i, by in apart
    ]
    for one, another in pairs:
        both = (1 - rate) ** 2
        assert abs((one & another).mean() - both) < 5 * (both * (1 - both) / one.size) ** 0.5

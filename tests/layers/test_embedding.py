"""Pixels: uint8, or floats, which count as normalised."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import clips, maker

from vidformers import ConfigError
from vidformers.layers import embedding
from vidformers.layers.embedding import normalise


@pytest.mark.quick
def test_uint8_is_normalised_and_floats_are_not():
    pixels = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(normalise(pixels, (0.5,) * 3, (0.5,) * 3, jnp.float32), [[-1, -0.6, 1]], rtol=1e-6)
    for dtype in (np.float16, np.float32, jnp.bfloat16):
        np.testing.assert_array_equal(normalise(jnp.asarray([[0.25]], dtype), (0.5,), (0.5,), jnp.float32), [[0.25]])


@pytest.mark.quick
@pytest.mark.parametrize("name", ["vit", "stat", "swin"])
def test_other_types_of_pixels_are_refused(name):
    model = nnx.eval_shape(lambda: maker(name)(rngs=nnx.Rngs(0)))
    for dtype in (jnp.int32, jnp.int8, bool, jnp.complex64):
        with pytest.raises(ConfigError, match=f"^Pixels must be uint8, or floats .*{jnp.dtype(dtype).name}"):
            jax.eval_shape(model, jax.ShapeDtypeStruct((1, *model.shape), dtype))


@pytest.mark.quick
def test_an_eager_call_with_floats_from_0_to_1_warns_once(monkeypatch):
    monkeypatch.setattr(embedding, "_has_warned", False)
    model = maker("vit", depth=1)(rngs=nnx.Rngs(0))
    video = jnp.asarray(clips(1)) / 255
    with warnings.catch_warnings(action="error"):
        model(clips(1))
        model(2 * video - 1)
        jax.eval_shape(model, video)
    with pytest.warns(UserWarning, match="floats from 0 to 1") as caught:
        model(video)
        model(video)
    assert len(caught) == 1 and caught[0].filename == __file__

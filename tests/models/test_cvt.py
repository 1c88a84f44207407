"""CvT on clips: attention equals its definition, with a dictionary. tests/pretrained/test_starts.py has its logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sublayers
from flax import nnx
from sublayers import HEADS, WIDTH, count_parameters, draw_tokens, influence, run
from tiny import clips, quick_jit, randomise

from vidformers import ConfigError
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.dictionary import HYBRIDS
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.models.config import ModelConfig
from vidformers.models.cvt import cvt
from vidformers.parallel.target import traced_for

TINY = dict(num_classes=5, frames=3, image_size=40, patch_size=4, width=8, heads=1, depth=6)
OWN = dict(depths=(1, 2, 3))


def make(own=None, **options):
    """(graph, random parameters) of a tiny model; nothing is compiled."""
    build = partial(cvt, **OWN | (own or {}))
    graph, state = nnx.split(nnx.eval_shape(lambda: build(ModelConfig(**{**TINY, **options}), rngs=nnx.Rngs(0))))
    return graph, randomise(nnx.to_pure_dict(state))


@partial(quick_jit, static_argnums=0)
def logits(graph, parameters, video, key=None):
    return nnx.merge(graph, parameters)(video, key)


def attention(scheme, **options):
    return sublayers.attention(ConvolutionalAttention, scheme, WIDTH, HEADS, **options)


def count(own=None, **options):
    """Number of parameters of a CvT-13 with 1000 classes, unless options differ."""
    options = {**dict(num_classes=1000, patch_size=4, width=64, heads=1, depth=13), **options}
    return count_parameters(lambda: cvt(ModelConfig(**options), **(own or {}), rngs=nnx.Rngs(0)))


def test_cvt_13_has_as_many_parameters_as_hugging_face_s():
    assert count(dict(joint="none")) == 19_997_480
    assert count(dict(joint="last")) == 19_997_480 + 8 * 384, "a table of frames where joint attention begins"
    assert count(dict(joint="all")) == 19_997_480 + 8 * 64


def test_a_dictionary_adds_keys_and_values_of_its_stage_s_width_to_each_layer():
    assert count(dictionary=112) - count() == 2 * 112 * (64 + 2 * 192 + 10 * 384)


# The definition


# Scheme and number of class tokens. The grids are odd, so the number of keys is rounded up.
CASES = [(Frame(), 0), (Frame(), 3), (Joint(), 0), (Joint(), 1)]


@pytest.mark.parametrize("kernel, external", [("softmax", 0), ("softmax", 2), ("relu", 0), ("relu", 2)])
@pytest.mark.parametrize("scheme, classes", CASES)
def test_gathered_equals_masked(float64, scheme, classes, kernel, external):
    tokens = draw_tokens((3, 3, 4), classes, clips=2)
    found, expected = (
        run(*attention(scheme, external=external, kernel=kernel, masked=masked, dtype=jnp.float64), tokens)
        for masked in (False, True)
    )
    assert (found[1] is None) == (classes == 0) and found[0].dtype == np.float64
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), found, expected)


@pytest.mark.parametrize("hybrid", HYBRIDS)
def test_gathered_equals_masked_in_every_hybrid(float64, hybrid):
    found, expected = (
        run(*attention(Frame(), external=3, hybrid=hybrid, masked=masked, dtype=jnp.float64), draw_tokens((3, 2, 2), 3))
        for masked in (False, True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), found, expected)


@pytest.mark.parametrize("external", [0, 2])
@pytest.mark.parametrize("scheme, classes", [(Frame(), 3), (Joint(), 1)])
def test_a_query_sees_its_frame_or_the_clip(scheme, classes, external):
    patches, tokens = influence(*attention(scheme, external=external), draw_tokens((3, 3, 3), classes))
    same = np.eye(3, dtype=bool) if classes == 3 else np.ones((3, 3), bool)
    own = same if classes == 3 else np.ones((3, 1), bool)  # frame x class token: whether patches see it

    def check(found, expected, *shape):
        np.testing.assert_array_equal(found.reshape(shape), np.broadcast_to(expected, shape))

    # Every patch is within the kernel of some key, since the kernels have side 3 and stride 2.
    check(patches[0], same[:, None, :, None], 3, 9, 3, 9)
    check(patches[1], own[:, None], 3, 9, classes)
    check(tokens[0], own.T[..., None], classes, 3, 9)
    check(tokens[1], np.eye(classes, dtype=bool), classes, classes)


# The model


@pytest.mark.parametrize("joint", ["none", "last"])
def test_the_layout_for_tpus_changes_logits_and_gradients_by_rounding_alone(joint):
    graph, parameters = make(dict(joint=joint), dictionary=2)

    def run_for(platform):
        def loss(parameters):
            return (nnx.merge(graph, parameters)(clips(2, frames=3, size=40)) ** 2).sum()

        with traced_for(platform):  # a new jit, which would otherwise return the program of the other platform
            return quick_jit(jax.value_and_grad(loss))(parameters)

    expected, found = run_for("cpu"), run_for("tpu")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


@pytest.mark.parametrize("joint", ["none", "all"])  # tests/models/test_models.py: "last"
def test_joint_models_see_order_and_frame_by_frame_ones_do_not(joint):
    graph, parameters = make(dict(joint=joint), dictionary=2)
    video = clips(2, frames=3, size=40)
    there, back = (logits(graph, parameters, clip) for clip in (video, video[:, ::-1]))
    assert (np.abs(there - back).max() > 1e-2) == (joint != "none")
    if joint == "none":
        np.testing.assert_allclose(there, back, atol=1e-4)


@pytest.mark.quick
@pytest.mark.parametrize(
    "own, options, words",
    [
        ({}, dict(kernel="cosine"), "model.kernel='cosine'"),
        (dict(joint="some"), {}, "model.joint='some'"),
        (dict(scale="clip"), {}, "model.scale='clip'"),
        (dict(depths=(1, 2)), dict(depth=3), r"model.depths=\(1, 2\)"),
        ({}, dict(depth=12), "model.depth=12"),
        ({}, dict(patch_size=16), "model.patch_size=16"),
        ({}, dict(image_size=3), "model.image_size=3"),
        ({}, dict(width=9, heads=2), "model.heads=2"),
        ({}, dict(dictionary=2, hybrid="split_heads"), "model.hybrid=split_heads"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(own, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        make(own, **options)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)

"""Video Swin: logits equal torchvision's, windows equal their definition, with and without a dictionary.

goldens/make_pyramids.py writes the archives and describes their contents.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sublayers
from flax import nnx
from sublayers import HEADS, WIDTH, assert_gathered_equals_masked, count_parameters, draw_tokens, influence, run
from tiny import clips, quick_jit, randomise
from weights import write

from vidformers import ConfigError
from vidformers.attention.dictionary import HYBRIDS
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.models.config import ModelConfig
from vidformers.models.swin import swin
from vidformers.parallel.target import traced_for
from vidformers.pretrained import Init, load

GOLDENS = Path(__file__).parents[1] / "goldens"
TINY = dict(num_classes=5, frames=8, image_size=32, patch_size=4, width=16, heads=2, depth=4)
OWN = dict(depths=(2, 2), window=(2, 4, 4))


def make(own=OWN, **options):
    """(graph, random parameters) of a tiny model; nothing is compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: swin(ModelConfig(**{**TINY, **options}), **own, rngs=nnx.Rngs(0))))
    return graph, randomise(nnx.to_pure_dict(state))


@partial(quick_jit, static_argnums=0)
def logits(graph, parameters, video, key=None):
    return nnx.merge(graph, parameters)(video, key)


def attention(window, shifted, **options):
    return sublayers.attention(ShiftedWindowAttention, WIDTH, HEADS, window=window, shifted=shifted, **options)


# Torchvision


@pytest.mark.parametrize(
    "golden, own, geometry",
    [
        ("swin_whole", dict(patch_frames=2, window=(2, 4, 4)), dict(frames=8, image_size=32)),
        ("swin_ragged", dict(patch_frames=1, window=(4, 5, 5)), dict(frames=3, image_size=28)),
    ],
)
def test_logits_equal_those_of_torchvision(golden, own, geometry, tmp_path):
    with np.load(GOLDENS / f"{golden}.npz") as file:
        arrays = dict(file)
    assert json.loads(str(arrays.pop("versions")))["torchvision"]
    video, expected = arrays.pop("input"), arrays.pop("output")
    make_model = partial(swin, ModelConfig(**TINY | geometry), **OWN | own)
    init = Init(weights=write(tmp_path, arrays), head="as_is", allow=("normalisation",))
    graph, drawn = make(OWN | own, **geometry)
    mapped = load(init, make_model).place_into(jax.tree.map(jnp.asarray, drawn))
    found = logits(graph, mapped, video)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def count(own=None, **options):
    """Number of parameters of a Swin-T with 400 classes, unless options differ."""
    options = {**dict(num_classes=400, frames=16, patch_size=4, width=96, heads=3, depth=12), **options}
    return count_parameters(lambda: swin(ModelConfig(**options), **(own or {}), rngs=nnx.Rngs(0)))


def test_swin_t_has_as_many_parameters_as_torchvision_s():
    assert count() == 28_158_070


def test_a_dictionary_adds_keys_and_values_of_its_stage_s_width_to_each_layer():
    small = partial(count, dict(depths=(2, 4)), depth=6, heads=6)
    layers, views = 2 * 96 + 4 * 192, 2 * 96**2 + 4 * 192**2
    assert small(dictionary=112) - small() == 2 * 112 * layers
    assert small(dictionary=7, hybrid="multi_view") - small() == 2 * 7 * layers + views


# The definition


# Shifted on every axis; padded; the window clipped in time; clipped on every axis; one axis in one window.
GEOMETRIES = [
    ((4, 4, 4), (2, 2, 2)),
    ((3, 5, 4), (2, 3, 3)),
    ((2, 4, 6), (4, 3, 3)),
    ((2, 2, 3), (3, 4, 4)),
    ((5, 3, 6), (2, 3, 4)),
]
CASES = [(*geometry, True, 3) for geometry in GEOMETRIES]
CASES += [(*geometry, shifted, 0) for geometry in GEOMETRIES[:2] for shifted in (False, True)]


@pytest.mark.parametrize("grid, window, shifted, external", CASES)
def test_gathered_equals_masked_with_its_gradient(float64, grid, window, shifted, external):
    assert_gathered_equals_masked(
        lambda masked: attention(window, shifted, external=external, masked=masked, dtype=jnp.float64),
        draw_tokens(grid, 0, clips=2),
    )


@pytest.mark.parametrize("hybrid", HYBRIDS)
def test_gathered_equals_masked_in_every_hybrid(float64, hybrid):
    found, expected = (
        run(
            *attention((2, 3, 3), True, external=3, hybrid=hybrid, masked=masked, dtype=jnp.float64),
            draw_tokens((4, 6, 6), 0),
        )[0]
        for masked in (False, True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("external", [0, 2])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid, window", [((4, 4, 2), (2, 2, 2)), ((2, 5, 4), (2, 2, 3))])
def test_a_patch_sees_exactly_its_window(grid, window, shifted, external):
    patches, classes = influence(*attention(window, shifted, external=external), draw_tokens(grid, 0))
    assert classes is None
    # Windows begin at these places of each axis. An axis no longer than the window is one window.
    borders = [
        [0] if n <= w else sorted({0, *range(w // 2 if shifted else 0, n, w)})
        for n, w in zip(grid, window, strict=True)
    ]
    home = [np.searchsorted(border, np.arange(n), side="right") for border, n in zip(borders, grid, strict=True)]
    expected = np.ones((1,) * 6, bool)
    for axis, places in enumerate(home):
        shape = [1] * 6
        shape[axis] = shape[axis + 3] = len(places)
        expected = expected & (places[:, None] == places).reshape(shape)
    np.testing.assert_array_equal(patches[0].reshape(*grid, *grid), expected)


# The model


def test_a_scan_equals_a_rematerialised_loop():
    own = dict(depths=(4,), window=(2, 4, 4))
    video = clips(2, size=16)
    found = []
    for options in (dict(), dict(unroll=2, remat="full")):
        graph, parameters = make(own, frames=4, image_size=16, drop_path=0.5, **options)
        gradient = jax.grad(lambda p, graph=graph: nnx.merge(graph, p)(video, jax.random.key(0)).sum())
        found.append(quick_jit(gradient)(parameters))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("side", [64, 40], ids=["windows divide the grid", "windows are padded"])
def test_the_layout_for_tpus_computes_the_same(float64, side):
    """Pixels by a product, keys of the dictionary joined to those of a window, and patches by window."""
    own, geometry = dict(depths=(2, 2), window=(2, 4, 4)), dict(frames=8, image_size=side)
    graph, parameters = make(own, dictionary=3, dtype="float64", **geometry)
    video = clips(2, frames=8, size=side).astype(float) / 100 - 1

    @quick_jit
    def run(parameters):
        out, backward = jax.vjp(lambda p: nnx.merge(graph, p)(video), parameters)
        return out, backward(draw(out.shape))

    def draw(shape):
        return jnp.asarray(np.random.default_rng(0).normal(size=shape))

    expected = run(parameters)
    with traced_for("tpu"):
        run.clear_cache()
        found = run(parameters)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, expected)


def test_bytes_are_normalised_and_dropout_is_drawn_only_with_a_key():
    graph, parameters = make(
        dict(depths=(2,)), frames=8, image_size=24, depth=2, dictionary=3, dropout=0.1, drop_path=0.2
    )
    video = clips(2, frames=8, size=24)
    still = logits(graph, parameters, video)
    np.testing.assert_allclose(still, logits(graph, parameters, np.float32(video / 127.5 - 1)), atol=1e-4)
    assert np.abs(still - logits(graph, parameters, video, jax.random.key(0))).max() > 1e-2
    assert np.abs(still - logits(graph, parameters, video[:, ::-1])).max() > 1e-2, "the order of frames matters"


@pytest.mark.quick
@pytest.mark.parametrize(
    "own, options, words",
    [
        ({}, dict(kernel="relu", dictionary=2), "model.kernel='relu'"),
        ({}, dict(kernel="cosine"), "model.kernel='cosine'"),
        (dict(depths=(1, 3)), {}, r"model.depths=\(1, 3\)"),
        ({}, dict(depth=12), "model.depth=12"),
        (dict(window=(2, 0, 4)), {}, r"model.window=\(2, 0, 4\)"),
        ({}, dict(image_size=30), "model.patch_size=4"),
        (dict(patch_frames=3), {}, "model.patch_frames=3"),
        ({}, dict(width=18, heads=4), "model.heads=4"),
        ({}, dict(heads=1, dictionary=2, hybrid="split_heads"), "model.hybrid=split_heads"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(own, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        make({**OWN, **own}, **options)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)

"""Shifts between neighbouring frames: which frames are reached. tests/models/test_papers.py holds the equations."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from flax import nnx
from sublayers import HEADS, WIDTH, draw_tokens, influence, layer, run
from tiny import clips, make, quick_jit

from vidformers import ConfigError, build
from vidformers.attention.frame import Frame
from vidformers.attention.shifted import BOUNDARIES, Shifted
from vidformers.models.summary import summarise

MOVED = ("Q", "K", "V", "QK", "QV", "KV", "QKV")
GRID = (4, 2, 3)
close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)


def neighbour(frames, t, step, boundary):
    """Returns the frame t + step of a list of frames, or what replaces it beyond the ends."""
    if 0 <= t + step < len(frames):
        return frames[t + step]
    return {"keep": frames[t], "zero": 0 * frames[t], "wrap": frames[(t + step) % len(frames)]}[boundary]


def outputs(scheme, frames=4):
    return run(*layer(scheme), draw_tokens((frames, 2, 3), frames))


@pytest.mark.parametrize("direction", ["heads", "patches"])
def test_with_nothing_shifted_or_in_a_clip_of_one_frame_it_is_frame_attention(direction):
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, outputs(Shifted(direction, "KV", 0, 0)), outputs(Frame()))
    jax.tree.map(same, outputs(Shifted(direction, "KV", 2, 1), frames=1), outputs(Frame(), frames=1))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_shifting_all_of_q_k_v_shifts_the_outputs_of_heads_and_not_of_patches(boundary):
    """The output projection is replaced by the identity, so that the outputs of the heads are compared."""

    def heads(scheme):
        graph, parameters = layer(scheme)
        parameters = parameters | {"out": {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH)}}
        patches, class_tokens = run(graph, parameters, draw_tokens(GRID, GRID[0]))
        x = np.concatenate([class_tokens[0][:, None], patches[0].reshape(GRID[0], -1, WIDTH)], axis=1)
        return x.reshape(*x.shape[:2], HEADS, -1)

    plain = heads(Frame())
    shifted = np.stack(
        [
            np.stack([neighbour(list(plain[:, :, h]), t, (-1, 1, 0, 0)[h], boundary) for h in range(HEADS)], axis=1)
            for t in range(GRID[0])
        ]
    )
    np.testing.assert_allclose(heads(Shifted("heads", "QKV", 1, 1, boundary)), shifted, rtol=1e-5, atol=1e-5)
    shifted_outputs = plain.copy()
    for n, step in enumerate((-1, -1, 1, 1)):
        shifted_outputs[:, n] = [neighbour(list(plain[:, n]), t, step, boundary) for t in range(GRID[0])]
    assert np.abs(heads(Shifted("patches", "QKV", 2, 2, boundary)) - shifted_outputs).max() > 0.05


def reach(scheme):
    """Returns (t, t'), whether some patch of frame t depends on some patch of frame t' in the branch."""
    patches, _ = influence(*layer(scheme), draw_tokens(GRID, GRID[0]))
    return patches[0].reshape(GRID[0], 6, GRID[0], 6).any((1, 3))


def test_frames_see_only_the_neighbours_of_the_chosen_side():
    """tests/attention/test_registry.py holds the shift to both sides."""
    distance = np.subtract.outer(np.arange(4), np.arange(4))
    np.testing.assert_array_equal(reach(Shifted("heads", "KV", 1, 0)), (distance == 0) | (distance == 1))
    np.testing.assert_array_equal(reach(Shifted("heads", "KV", 0, 1, "wrap")), np.isin(distance % 4, (0, 3)))
    all_heads = reach(Shifted("heads", "QKV", HEADS, 0))  # frame 0 keeps its own entries
    np.testing.assert_array_equal(all_heads, (distance == 1) | ((distance == 0) & (np.arange(4) == 0)))


@cache
def hops(name, **options):
    """Returns (t, t'), whether the class token of frame t depends on frame t' of the video after the encoder."""
    graph, parameters = make(name, **options)
    video = clips(1).astype(np.float32) / 255

    def features(video):
        return nnx.merge(graph, parameters).encoder(video)[0].sum(-1)

    return np.any(quick_jit(jax.jacrev(features))(video)[:, 0], axis=(2, 3, 4))


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_block_reaches_one_frame_further(blocks):
    distance = abs(np.subtract.outer(np.arange(4), np.arange(4)))
    np.testing.assert_array_equal(hops("msca", shifted_blocks=blocks), distance <= blocks)


def test_token_shift_reaches_one_frame_in_its_first_block_and_two_in_each_other():
    """Before the first attention, class tokens do not depend on the video, so the first shift moves nothing."""
    distance = abs(np.subtract.outer(np.arange(4), np.arange(4)))
    np.testing.assert_array_equal(hops("tokenshift", depth=1), distance <= 1)
    assert hops("tokenshift", depth=2).all()


def test_no_variant_has_other_parameters_or_costs_than_vit():
    vit = summarise(partial(build, "vit", num_classes=400))
    for options in [dict(direction=direction, moved=moved) for direction in ("heads", "patches") for moved in MOVED]:
        msca = summarise(partial(build, "msca", num_classes=400, shifted_blocks=4, **options))
        assert msca[:3] == vit[:3] == (86_106_256, 140_504_788_992, 134_782_169_088)
    assert summarise(partial(build, "tokenshift", num_classes=400))[:3] == vit[:3]


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, options, field",
    [
        ("msca", dict(before=7, after=6), "model.before=7"),
        ("msca", dict(before=-1), "model.before=-1"),
        ("msca", dict(direction="patches", before=100, after=98), "model.before=100"),
        ("msca", dict(direction="rows"), "model.direction='rows'"),
        ("msca", dict(placement="last"), "model.placement='last'"),
        ("msca", dict(placement="ends", direction="patches"), "model.placement=ends"),
        ("msca", dict(moved="VK"), "model.moved='VK'"),
        ("msca", dict(moved=""), "model.moved=''"),
        ("msca", dict(boundary="mirror"), "model.boundary='mirror'"),
        ("msca", dict(shifted_blocks=13), "model.shifted_blocks=13"),
        ("tokenshift", dict(fold=1), "model.fold=1"),
        ("tokenshift", dict(boundary="mirror"), "model.boundary='mirror'"),
    ],
)
def test_an_impossible_shift_raises_an_error_of_one_sentence(name, options, field):
    with pytest.raises(ConfigError) as error:
        nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), num_classes=5, **options))
    assert field in str(error.value) and str(error.value).endswith(".")

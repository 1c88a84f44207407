"""VTN: its backbones, frames in chunks, positions, and the evaluation of whole videos."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from command import arguments, render, rows
from flax import nnx
from sublayers import count_parameters
from tiny import clips, compiled, make, maker, quick_jit

import main
import vidformers.training.setup
from vidformers import ConfigError, build
from vidformers.models.encoder import FramewiseEncoder
from vidformers.models.resnet import ResNet
from vidformers.parallel.mesh import make_mesh
from vidformers.parallel.target import traced_for
from vidformers.training.optim import make_optimizer
from vidformers.training.step import initial_state, make_step

RESNET = dict(backbone="resnet", depths=(1, 1), stem=4)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_published_sizes():
    one = count_parameters(lambda: build("vtn", num_classes=400, temporal_depth=1, rngs=nnx.Rngs(0)))
    assert one == 113_502_352 - 2 * 8_859_648  # three layers: 113,502,352
    resnet = nnx.eval_shape(lambda: build("vtn", num_classes=400, backbone="resnet", rngs=nnx.Rngs(0))).encoder.encoder
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(resnet)))
    assert count - (2048 + 1) * 768 == 25_557_032 - (2048 + 1) * 1000, "ResNet-50 without its classifier"


@pytest.mark.parametrize("depths", [(2, 1), (1,)], ids=str)
def test_pairs_of_frames_on_tpus_have_the_features_and_gradients_of_single_frames(depths):
    make_resnet = partial(ResNet, frames=1, image_size=30, width=16, mean=(0.5,) * 3, std=(0.2,) * 3, depths=depths)
    graph, state = nnx.split(make_resnet(stem=64, rngs=nnx.Rngs(0)))
    parameters = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape), state)
    video = clips(2, frames=4, size=30)

    def run_for(platform):
        def loss(parameters):
            return (nnx.merge(graph, parameters)(video) ** 2).sum()

        with traced_for(platform):  # a new jit, which would otherwise return the program of the other platform
            return quick_jit(jax.value_and_grad(loss))(nnx.to_pure_dict(parameters))

    def assert_close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    jax.tree.map(assert_close, run_for("tpu"), run_for("cpu"))


@pytest.mark.parametrize("at_once, options", [(1, {}), (3, {}), (16, {}), (3, RESNET)], ids=str)
def test_frames_in_chunks_equal_frames_together(at_once, options):
    forward, parameters = compiled("vtn", **options)
    chunked, _ = compiled("vtn", frames_at_once=at_once, **options)
    close(chunked(parameters, clips()), forward(parameters, clips()))


@pytest.mark.quick
def test_the_frames_of_a_chunk_join_the_batch_axis():
    """Under vmap, JAX cannot compute cuDNN's attention with lengths."""
    shapes = []

    class Features(nnx.Module):
        shape = (1, 2, 2, 3)

        def __call__(self, video, key=None):
            shapes.append(video.shape)
            return video.mean((2, 3))

    video = np.random.default_rng(0).random((2, 7, 2, 2, 3), np.float32)
    close(FramewiseEncoder(Features(), 7, at_once=3)(video), video.mean((2, 3)))
    assert shapes == [(6, 1, 2, 2, 3), (2, 1, 2, 2, 3)]


def test_memory_does_not_grow_with_the_frames_taken_in_chunks():
    def temporary(frames, at_once):
        graph, parameters = make("vtn", frames=frames, frames_at_once=at_once)
        run = quick_jit(lambda p, x: nnx.merge(graph, p)(x))
        return (
            run.lower(parameters, jax.ShapeDtypeStruct((1, frames, 32, 32, 3), np.uint8))
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporary(128, None) > 4 * temporary(128, 4)
    assert temporary(128, 4) < 2 * temporary(32, 4) + 128 * 32 * 32 * 3 * 4, "except for the pixels"


def forward(graph, parameters, video, index):
    return nnx.merge(graph, parameters)(video, None, index)


def test_positions_are_those_of_the_video_and_any_number_of_frames_is_taken():
    graph, parameters = make("vtn")
    run = quick_jit(partial(forward, graph))
    index = np.broadcast_to(np.arange(4), (4, 4))
    logits = run(parameters, clips(), index)
    close(run(parameters, clips(), None), logits)
    assert np.abs(run(parameters, clips(), 8 * index) - logits).max() > 1e-2
    longer, same = make("vtn", frames=11)
    assert jax.tree.map(np.shape, same) == jax.tree.map(np.shape, parameters)
    assert np.isfinite(quick_jit(partial(forward, longer))(parameters, clips(frames=11), None)).all()


def test_a_wide_window_without_positions_is_blind_to_order_and_a_narrow_one_is_not():
    orders = range(8), [3, 1, 0, 2, 7, 5, 6, 4], range(7, -1, -1)
    shuffled = np.stack([clips(1, frames=8)[0][order] for order in orders])
    for window, blind in ((16, True), (4, False)):
        graph, parameters = make("vtn", frames=8, window=(window,))
        parameters["readout"]["position"] = 0 * parameters["readout"]["position"]
        logits = quick_jit(partial(forward, graph))(parameters, shuffled, None)
        close(logits[2], logits[0], rtol=1e-4, atol=1e-4)  # a reversal changes no distance
        assert (np.abs(logits[1] - logits[0]).max() < 1e-4) == blind


def test_a_frozen_backbone_keeps_its_parameters_bit_for_bit():
    optimizer, rate = make_optimizer(10, 1, lr=0.1, weight_decay=0.5, schedule="constant", frozen=("encoder",))
    graph, _ = make("vtn")
    state = quick_jit(partial(initial_state, maker("vtn"), optimizer, None, 0))()
    step = quick_jit(make_step(graph, optimizer, rate, seed=0, frozen=("encoder",)))
    batch = {"video": clips(2), "label": np.array([0, 1]), "mask": np.ones(2, np.float32)}
    after, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.parameters["encoder"], state.parameters["encoder"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, after.parameters["readout"], state.parameters["readout"])
    assert sum(jax.tree.leaves(moved)) > 0.8 * len(jax.tree.leaves(moved))


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, field",
    [
        (dict(backbone="cnn"), "model.backbone='cnn'"),
        (dict(kernel="relu"), "model.kernel=relu"),
        (dict(window=(5,)), "model.window=5"),
        (dict(window=(4, 4)), "model.window=(4, 4)"),
        (dict(backbone="resnet", depths=()), "model.depths"),
        (dict(frames_at_once=0), "model.frames_at_once=0"),
        (dict(frames=0), "model.frames=0"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(options, field):
    with pytest.raises(ConfigError) as refusal:
        nnx.eval_shape(lambda: build("vtn", rngs=nnx.Rngs(0), **{"num_classes": 5, **options}))
    assert field in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_trained_checkpoint_is_evaluated_on_whole_videos(tmp_path, monkeypatch):
    # One device, since programs for eight take longer to compile.
    monkeypatch.setattr(vidformers.training.setup, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    data, workdir = render(tmp_path / "clips"), tmp_path / "run"
    fields = {
        "model.temporal_depth": 1,
        "model.window": "(4,)",
        "model.frames_at_once": 3,
        "train.total_steps": 3,
        "eval.clips": 1,
        "eval.frames": 8,
    }
    for mode in ("train", "eval"):
        _, *flags = arguments(data, workdir, fields, mode)
        assert main.main(["main.py", "--config=configs/demo.py:vtn", *flags]) == 0
    trained = rows(workdir)[-1]
    whole = json.loads((workdir / "eval_1x1.json").read_text())
    assert whole["step"] == 3 and whole["val/videos@1x1"] == 10
    assert {name: value for name, value in whole.items() if name.startswith("val/")}.items() <= trained.items()

"""Evaluation equals plain numpy: views are averaged, and each video counts once, on any number of devices.

The model of these tests returns its pixels as logits, so that each case can be set up exactly.
"""

import signal
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import quick_jit

from vidformers import ConfigError
from vidformers.parallel import memory
from vidformers.parallel.mesh import make_mesh
from vidformers.parallel.state import replicated_sharding
from vidformers.training import stopping
from vidformers.training.evaluate import EvalProtocol, Evaluator, batch_scores, view_scores
from vidformers.training.scoring import SINGLE_LABEL, MultiLabel, VideoScores
from vidformers.training.stopping import StopSignal

CLASSES = 7


class Pixels(nnx.Module):
    """A model whose logits are its pixels times one parameter."""

    def __init__(self):
        self.gain = nnx.Param(np.ones((), np.float32))

    def __call__(self, video, index=None):
        return video[:, 0, 0, 0] * self.gain[...]


GRAPH, STATE = nnx.split(Pixels())
PARAMETERS = nnx.to_pure_dict(STATE)


def rows(logits, label, mask=None, ids=None, errors=None):
    """Returns a batch whose model has the logits (b v k)."""
    count = len(logits)
    return {
        "video": np.asarray(logits, np.float32)[:, :, None, None, None, :],
        "label": np.asarray(label, np.float32 if np.ndim(label) == 2 else np.int32),
        "mask": np.ones(count, np.float32) if mask is None else np.asarray(mask, np.float32),
        "id": np.arange(count) if ids is None else np.asarray(ids),
        "error": np.array(errors or [b""] * count, object),
    }


def draw(seed, videos=16, views=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(videos, views, CLASSES)) * 2, rng.integers(0, CLASSES, videos)


def evaluate(batches, mesh=None, stop=None, scoring=SINGLE_LABEL, **protocol):
    mesh = mesh or make_mesh()
    protocol = EvalProtocol(**{**dict(clips=2, crops=3, batch_size=8), **protocol})
    replicated = jax.tree.map(lambda _: replicated_sharding(mesh), PARAMETERS)
    evaluator = Evaluator(GRAPH, mesh, replicated, protocol, scoring)
    return evaluator(PARAMETERS, batches, lambda id, error: LookupError(f"{id}: {error}"), stop or StopSignal())


def average(logits, kind):
    """Returns log-probabilities (b k) of logits (b v k), averaged in float64."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    if kind == "probabilities":
        return np.log(p.mean(1))
    mean = np.exp(logits.mean(1))
    return np.log(mean / mean.sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
@pytest.mark.parametrize("at_once", [1, 2, 4, 6, 9])
def test_views_are_averaged_as_asked_however_many_run_at_once(kind, at_once):
    logits, label = draw(0)
    protocol = EvalProtocol(average=kind, views_at_once=at_once)
    actual = quick_jit(partial(view_scores, protocol=protocol), static_argnums=0)(
        Pixels().__call__, rows(logits, label)["video"], None
    )
    np.testing.assert_allclose(actual, average(logits, kind), rtol=1e-5, atol=1e-5)


def test_the_two_averages_differ_where_one_view_is_sure():
    logits = np.zeros((1, 2, CLASSES))
    logits[0, 0, 0], logits[0, 1, 1], logits[0, 0, 1] = 1, 6, -20
    assert [average(logits, kind).argmax() for kind in ("probabilities", "logits")] == [1, 0]
    for kind, winner in (("probabilities", 1), ("logits", 0)):
        result = evaluate(
            [rows(logits, [winner])], make_mesh(devices=jax.devices()[:1]), clips=2, crops=1, average=kind
        )
        assert result.metrics["val/top1@2x1"] == 1


@pytest.mark.parametrize("mesh", [dict(), dict(data=2, fsdp=4)], ids=["data", "data and fsdp"])
def test_metrics_over_devices_equal_numpy(mesh):
    logits, label = draw(1)
    batches = [rows(logits[:8], label[:8]), rows(logits[8:], label[8:], ids=np.arange(8, 16))]
    result = evaluate(batches, make_mesh(**mesh))
    log_p = average(logits, "probabilities")
    order = np.argsort(-log_p, axis=1)
    correct = order[:, 0] == label
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (label, order[:, 0]), 1)
    expected = {
        "top1": correct.mean(),
        "top5": (order[:, :5] == label[:, None]).any(1).mean(),
        "loss": -log_p[np.arange(16), label].mean(),
        "videos": 16,
        "mean_class_top1": np.mean([correct[label == k].mean() for k in np.unique(label)]),
    }
    expected = {f"val/{key}@2x3": value for key, value in expected.items()}
    assert result.metrics == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(SINGLE_LABEL.confusion(result.videos), confusion)
    np.testing.assert_array_equal(result.videos.best, order[:, :5])
    assert result.skipped == []


def test_metrics_of_several_labels_depend_on_neither_devices_nor_batches():
    rng = np.random.default_rng(7)
    logits, label = draw(7)[0], (rng.random((16, CLASSES)) < 0.3).astype(np.float32)
    p = 1 / (1 + np.exp(-np.float32(logits).astype(float)))
    videos = VideoScores(np.arange(16), label, np.log(p.mean(1) / (1 - p.mean(1))), np.zeros((16, 5), int))
    expected = MultiLabel().metrics(videos, MultiLabel().class_metrics(videos))
    expected = {f"val/{name}@2x3": value for name, value in expected.items()} | {"val/videos@2x3": 16}
    for mesh, size in (
        (make_mesh(), 8),
        (make_mesh(devices=jax.devices()[:1]), 16),
        (make_mesh(devices=jax.devices()[:2]), 2),
    ):
        batches = [
            rows(logits[start : start + size], label[start : start + size], ids=np.arange(start, start + size))
            for start in range(0, 16, size)
        ]
        result = evaluate(batches, mesh, scoring=MultiLabel(), batch_size=size)
        assert result.metrics == pytest.approx(expected, rel=1e-5)
        assert result.classes == MultiLabel().class_metrics(result.videos)


@pytest.mark.quick
def test_scores_over_devices_equal_those_of_one():
    logits, label = draw(2, videos=8)
    batch = {key: value for key, value in rows(logits, label).items() if key in ("video", "label", "mask")}
    mesh = make_mesh(data=2, fsdp=4)
    everywhere = jax.tree.map(lambda _: replicated_sharding(mesh), PARAMETERS)
    evaluator = Evaluator(GRAPH, mesh, everywhere, EvalProtocol(clips=2))
    one = quick_jit(partial(batch_scores, GRAPH, EvalProtocol(clips=2), SINGLE_LABEL))(PARAMETERS, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), evaluator.step(PARAMETERS, batch), one)


def test_rows_that_pad_a_batch_are_not_counted():
    logits, label = draw(3)
    whole = evaluate([rows(logits[:8], label[:8]), rows(logits[8:], label[8:], ids=np.arange(8, 16))])
    noise, other = draw(4)
    mask = [1, 1, 0, 0, 0, 0, 0, 0]
    small_batches = [
        rows(
            np.concatenate([logits[i : i + 2], noise[:6]]),
            np.concatenate([label[i : i + 2], other[:6]]),
            mask,
            [i, i + 1] + [-1] * 6,
        )
        for i in reversed(range(0, 16, 2))
    ]
    padded = evaluate(small_batches)
    assert padded.metrics == pytest.approx(whole.metrics, rel=1e-6)
    for field, expected in zip(padded.videos, whole.videos, strict=True):
        np.testing.assert_allclose(field, expected, rtol=1e-6)
    assert padded.skipped == []


def test_ties_go_to_the_class_that_comes_first():
    """With equal logits, the top-1 prediction is class 0 and the top-5 predictions are classes 0 to 4."""
    result = evaluate([rows(np.zeros((8, 1, CLASSES)), [0, 1, 2, 3, 4, 5, 6, 6])], clips=1, crops=1)
    assert result.metrics["val/top1@1x1"] == 1 / 8
    assert result.metrics["val/top5@1x1"] == 5 / 8
    assert (result.videos.best == range(5)).all()


def test_a_class_without_videos_is_not_part_of_the_mean_over_classes():
    logits = np.zeros((8, 1, CLASSES))
    logits[:, 0, 2] = 1
    result = evaluate([rows(logits, [2] * 6 + [3] * 2)], clips=1, crops=1)
    assert result.metrics["val/mean_class_top1@1x1"] == 0.5
    assert result.metrics["val/top1@1x1"] == 0.75


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_is_heard_at_the_next_batch(processes, monkeypatch):
    """With two processes, the flag travels with the batch."""
    monkeypatch.setattr(stopping, "jax", SimpleNamespace(process_count=lambda: processes))
    logits, label = draw(6, videos=8)
    stop, used = StopSignal(), []

    def batches():
        for number in range(3):
            used.append(number)
            if number == 1:
                stop.signal = signal.SIGTERM
            yield rows(logits, label)

    assert evaluate(batches(), stop=stop) is None
    assert used == [0, 1] and stop.agreed


def broken():
    logits, label = draw(5, videos=8)
    mask = np.arange(8) != 3
    errors = [b"" if ok else b"no frames" for ok in mask]
    return rows(logits, label, mask, ids=np.arange(8) + 10, errors=errors), mask


def test_a_bad_video_is_an_error():
    with pytest.raises(LookupError, match="13: no frames"):
        evaluate([broken()[0]])


def test_a_bad_video_is_left_out_and_named_if_asked():
    batch, good = broken()
    result = evaluate([batch], on_bad="skip")
    assert result.skipped == [(13, "no frames")]
    assert result.metrics["val/videos@2x3"] == 7
    correct = average(batch["video"][good, :, 0, 0, 0], "probabilities").argmax(1) == batch["label"][good]
    assert result.metrics["val/top1@2x3"] == pytest.approx(correct.mean())


def test_nothing_to_evaluate_is_a_mistake():
    batch = broken()[0]
    for batches in ([], [{**batch, "mask": 0 * batch["mask"]}]):
        with pytest.raises(ConfigError, match="data.val"):
            evaluate(batches, on_bad="skip")


@pytest.mark.quick
@pytest.mark.parametrize(
    "protocol, field",
    [
        (dict(clips=0), "eval.clips=0"),
        (dict(crops=0), "eval.crops=0"),
        (dict(views_at_once=0), "eval.views_at_once=0"),
        (dict(average="max"), "eval.average='max'"),
        (dict(on_bad="hide"), "eval.on_bad='hide'"),
        (dict(checkpoint="first"), "eval.checkpoint='first'"),
        (dict(batch_size=12), "eval.batch_size=12"),
    ],
)
def test_a_protocol_that_cannot_work_is_refused(protocol, field):
    with pytest.raises(ConfigError, match=field):
        evaluate([], **protocol)


@pytest.mark.quick
@pytest.mark.parametrize("batch_size, words", [(16, "Lower eval.batch_size"), (8, "lower eval.views_at_once")])
def test_a_batch_that_does_not_fit_on_a_device_is_refused(batch_size, words, monkeypatch):
    logits, labels = draw(0)
    batch = rows(logits[:batch_size], labels[:batch_size])
    evaluate([batch], batch_size=batch_size)
    monkeypatch.setattr(memory, "bytes_available", lambda: 100)
    sentence = rf"eval\.batch_size={batch_size} needs .* GiB per device, but 0\.00 GiB are available\. .*{words}"
    with pytest.raises(ConfigError, match=sentence):
        evaluate([batch], batch_size=batch_size)

    def exhaust(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(jax.stages.Lowered, "compile", exhaust)
    with pytest.raises(ConfigError, match=rf"eval\.batch_size={batch_size} needs more memory than a device has"):
        evaluate([batch], batch_size=batch_size)


@pytest.fixture(scope="module")
def programs():
    """Returns an evaluator, and the bytes of its programs by the number of videos."""
    mesh = make_mesh()
    shardings = jax.tree.map(lambda _: replicated_sharding(mesh), PARAMETERS)
    evaluator = Evaluator(GRAPH, mesh, shardings, EvalProtocol(clips=2, crops=1))
    counts = (8, 16, 32, 64, 128)
    return evaluator, {count: memory.program_bytes(evaluator.compile(PARAMETERS, count, 1, 64)) for count in counts}


@pytest.mark.parametrize("spare, videos", [(0, 8), (1, 16), (3, 32), (20, 128)])
def test_the_largest_batch_that_fits_is_chosen(spare, videos, programs, monkeypatch):
    """The memory has space for `spare` videos on each device beside the first."""
    evaluator, sizes = programs
    assert list(sizes.values()) == sorted(sizes.values())
    per_video = sizes[16] - sizes[8]  # on each of 8 devices
    monkeypatch.setattr(memory, "bytes_available", lambda: sizes[8] + spare * per_video)
    monkeypatch.setattr(memory, "program_bytes", lambda count: sizes[count])
    monkeypatch.setattr(evaluator, "compile", lambda parameters, count, frames, size: count)
    choose = partial(evaluator.choose_batch_size, PARAMETERS, 1, 64)
    assert choose() == videos
    if spare == 20:  # fewer if other arrays take memory, shared memory is short, or workers would get no batch
        assert choose(other_bytes=18 * per_video) == 16
        assert choose(max_batch_bytes=40 * 2 * 64 * 64 * 3) == 32 and choose(max_batch_bytes=1) == 8
        assert choose(max_videos=17) == 16

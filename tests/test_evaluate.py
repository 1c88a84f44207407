"""Evaluation: views are averaged as said, every video counts once, on any number of devices."""

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import clips, make

from vidformers.errors import ConfigError
from vidformers.evaluate import Evaluator, Protocol, batch_sums, scores
from vidformers.sharding import make_mesh, state_shardings

GRAPH, PARAMETERS = make("vit")
VIEWS = 3


def videos(count, seed=0):
    return clips(count * VIEWS, seed).reshape(count, VIEWS, *clips(1).shape[1:])


def batch(count, real=None, seed=0):
    real = count if real is None else real
    mask = (np.arange(count) < real).astype(np.float32)
    labels = np.random.default_rng(seed).integers(0, 5, count).astype(np.int32)
    return {"video": videos(count, seed), "label": labels * mask.astype(np.int32), "mask": mask,
            "id": np.where(mask > 0, np.arange(count), -1).astype(np.int32), "error": np.array([b""] * count, "S300")}


def logits_of(video):
    model = nnx.merge(GRAPH, PARAMETERS)
    return np.stack([np.asarray(jax.jit(model)(video[:, v]), np.float64) for v in range(video.shape[1])], axis=1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("views_at_once", [1, 2, 3, 8])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_views_are_averaged_as_the_protocol_says_in_chunks_of_any_size(average, views_at_once):
    video = videos(2)
    logits = logits_of(video)
    expected = softmax(logits).mean(axis=1) if average == "probabilities" else softmax(logits.mean(axis=1))
    found = jax.jit(lambda p, x: scores(nnx.merge(GRAPH, p), x, average, views_at_once))(PARAMETERS, video)
    np.testing.assert_allclose(np.exp(found), expected, atol=2e-6)


def test_the_sums_of_a_batch_equal_those_counted_by_hand():
    rows = batch(8, real=6)
    p = softmax(logits_of(rows["video"])).mean(axis=1)[:6]
    label = rows["label"][:6]
    rank = (p > p[np.arange(6), label][:, None]).sum(axis=1)
    sums = jax.jit(lambda q, b: batch_sums(GRAPH, "probabilities", 1, q, b))(
        PARAMETERS, {k: rows[k] for k in ("video", "label", "mask")})
    assert sums.count == 6 and sums.top1 == (rank == 0).sum() and sums.top5 == 6
    np.testing.assert_allclose(sums.loss, -np.log(p[np.arange(6), label]).sum(), rtol=1e-5)
    expected = np.zeros((5, 5))
    np.add.at(expected, (label, p.argmax(axis=1)), 1)
    np.testing.assert_array_equal(sums.confusion, expected)


def test_equal_scores_rank_by_class_so_that_a_constant_model_is_not_always_right():
    silent = jax.tree.map(np.zeros_like, PARAMETERS)
    rows = {**batch(5), "label": np.arange(5, dtype=np.int32)}
    sums = jax.jit(lambda q, b: batch_sums(GRAPH, "probabilities", 1, q, b))(
        silent, {k: rows[k] for k in ("video", "label", "mask")})
    assert sums.top1 == 1 and sums.top5 == 5


def evaluate(mesh, protocol, batches):
    evaluator = Evaluator(GRAPH, mesh, state_shardings(mesh, PARAMETERS), protocol)
    return evaluator(PARAMETERS, batches, lambda row, error: ConfigError(f"video {row}: {error}"))


def test_one_device_and_eight_count_the_same_videos_and_find_the_same():
    whole = batch(16, real=11)
    split = [{k: v[:8] for k, v in whole.items()}, {k: v[8:] for k, v in whole.items()}]
    eight = evaluate(make_mesh(data=4, fsdp=2), Protocol(batch_size=8), split)
    one = make_mesh(devices=jax.devices()[:1])
    single = evaluate(one, Protocol(batch_size=16), [whole])
    assert eight.figures["val/videos@1x3"] == single.figures["val/videos@1x3"] == 11
    np.testing.assert_array_equal(eight.confusion, single.confusion)
    for name, value in single.figures.items():
        assert eight.figures[name] == pytest.approx(value, rel=1e-5), name


def test_a_video_that_will_not_decode_is_an_error_or_is_left_out_and_named():
    rows = batch(8)
    rows["mask"][3], rows["error"][3] = 0, b"moov is missing"
    with pytest.raises(ConfigError, match="video 3: moov is missing"):
        evaluate(make_mesh(), Protocol(), [rows])
    result = evaluate(make_mesh(), Protocol(on_bad="skip"), [rows])
    assert result.skipped == [(3, "moov is missing")] and result.figures["val/videos@1x3"] == 7


def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    with pytest.raises(ConfigError, match="eval.batch_size=6 must be divisible by the 8 devices"):
        Evaluator(GRAPH, make_mesh(), state_shardings(make_mesh(), PARAMETERS), Protocol(batch_size=6))


@pytest.mark.parametrize("field, value", [("clips", 0), ("average", "median"), ("on_bad", "ignore"), ("batch_size", 0)])
def test_a_protocol_that_cannot_be_is_refused_by_field(field, value):
    with pytest.raises(ConfigError, match=f"eval.{field}"):
        Protocol(**{field: value})

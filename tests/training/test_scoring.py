"""Metrics equal those of scikit-learn and short definitions, also where scores are equal and classes have no videos."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vidformers import ConfigError
from vidformers.training.scoring import SINGLE_LABEL, MultiLabel, VideoScores, average_precision, join

MULTI_LABEL = MultiLabel(threshold=0.3)


def sklearn_average_precision(is_positive, scores):
    """Returns the average precision by scikit-learn, which refuses infinities; the order is what counts."""
    return average_precision_score(is_positive, np.maximum(scores, np.finfo(np.float32).min))


def videos(label, scores, ids=None):
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return VideoScores(np.arange(len(scores)) if ids is None else ids, label, scores.astype(np.float32), best)


@pytest.mark.quick
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_equals_that_of_scikit_learn_with_any_ties_in_any_order(levels):
    rng = np.random.default_rng(levels)
    for count in (1, 2, 30):
        with np.errstate(divide="ignore"):
            scores = np.log(rng.integers(0, levels, count) / levels)  # -inf among them
        is_positive = rng.random(count) < 0.4
        is_positive[0] = True
        expected = sklearn_average_precision(is_positive, scores)
        order = rng.permutation(count)
        assert average_precision(is_positive, scores) == pytest.approx(expected, rel=1e-12)
        assert average_precision(is_positive[order], scores[order]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize(
    "is_positive, scores, expected",
    [
        ([1, 1, 0, 0], [4, 3, 2, 1], 1),
        ([0, 1], [2, 1], 1 / 2),
        ([1, 0, 1, 0], [4, 3, 2, 1], (1 + 2 / 3) / 2),
        ([1, 0, 0, 0], [1, 1, 1, 1], 1 / 4),  # equal scores tell nothing: the share of positives
        ([0, 0], [2, 1], None),
    ],
)
def test_average_precision_of_small_cases(is_positive, scores, expected):
    result = average_precision(np.array(is_positive, bool), np.array(scores, float))
    assert result == (None if expected is None else pytest.approx(expected))


def test_each_class_has_its_own_top1_and_average_precision():
    scores = np.log([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    rows = SINGLE_LABEL.class_metrics(videos(np.array([0, 0, 1, 1]), scores))
    assert rows == [
        {"videos": 2, "top1": 0.5, "average_precision": pytest.approx(1)},
        {"videos": 2, "top1": 1.0, "average_precision": pytest.approx(1)},
        {"videos": 0, "top1": None, "average_precision": None},
    ]


@pytest.mark.parametrize("levels", [3, 1000])
def test_with_one_label_each_class_has_the_average_precision_of_scikit_learn_against_the_rest(levels):
    rng = np.random.default_rng(levels)
    scores = np.log(rng.integers(1, levels, (50, 6)) / levels)
    label = rng.choice([0, 1, 2, 4], 50)  # no video has class 3 or class 5
    for k, row in enumerate(SINGLE_LABEL.class_metrics(videos(label, scores))):
        expected = sklearn_average_precision(label == k, scores[:, k]) if k in label else None
        assert row["average_precision"] == (expected and pytest.approx(expected, rel=1e-12)), k


def draw_labels(seed=0, count=40, classes=4):
    rng = np.random.default_rng(seed)
    label = (rng.random((count, classes)) < 0.3).astype(np.float32)
    label[:, 2] = 0  # a class without videos
    return label, np.round(3 * rng.normal(size=(count, classes)))  # with equal scores


def test_several_labels_have_the_mean_over_the_classes_that_a_video_has():
    label, logits = draw_labels()
    scored = videos(label, logits)
    rows = MULTI_LABEL.class_metrics(scored)
    metrics, p = MULTI_LABEL.metrics(scored, rows), 1 / (1 + np.exp(-np.float32(logits).astype(float)))
    precisions = [sklearn_average_precision(label[:, k], scored.scores[:, k]) for k in (0, 1, 3)]
    expected = average_precision_score(label[:, [0, 1, 3]], scored.scores[:, [0, 1, 3]], average="macro")
    assert metrics["mAP"] == pytest.approx(expected, rel=1e-12)
    assert metrics["loss"] == pytest.approx(-np.mean(label * np.log(p) + (1 - label) * np.log(1 - p)))
    assert [row["average_precision"] for row in rows] == pytest.approx([*precisions[:2], None, precisions[2]])
    for k, row in enumerate(rows):
        is_predicted, is_positive = p[:, k] > 0.3, label[:, k] > 0
        correct = (is_predicted & is_positive).sum()
        assert row["videos"] == is_positive.sum()
        assert row["precision"] == pytest.approx(correct / is_predicted.sum())
        assert row["recall"] == (None if k == 2 else pytest.approx(correct / is_positive.sum()))


def test_probabilities_are_those_that_the_views_average_to():
    _, logits = draw_labels(count=6)
    views = np.float32([logits, -logits / 2, logits + 1])
    sigmoid = 1 / (1 + np.exp(-views.astype(float)))
    actual = MULTI_LABEL.probabilities(np.asarray(MULTI_LABEL.average_views(views, "probabilities")))
    np.testing.assert_allclose(actual, sigmoid.mean(0), rtol=1e-5)
    actual = MULTI_LABEL.probabilities(np.asarray(MULTI_LABEL.average_views(views, "logits")))
    np.testing.assert_allclose(actual, 1 / (1 + np.exp(-views.mean(0))), rtol=1e-5)


def test_logits_of_sure_predictions_stay_apart():
    """Probabilities of 1 - 1e-9 and 1 - 1e-13 are equal in float32, so their ranks would be lost."""
    views = np.float32([[[20, 30, -20, -30]], [[21, 31, -21, -31]]])
    scores = np.asarray(MULTI_LABEL.average_views(views, "probabilities"))[0]
    assert np.isfinite(scores).all() and scores[1] - scores[0] > 9 and scores[2] - scores[3] > 9


def test_videos_without_any_label_have_no_mean_average_precision():
    unlabelled = videos(np.zeros((3, 2), np.float32), np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="None of the 3 videos that were evaluated has a label"):
        MULTI_LABEL.metrics(unlabelled, MULTI_LABEL.class_metrics(unlabelled))


def test_batches_are_joined_in_the_order_of_the_list():
    label, logits = draw_labels()
    whole = videos(label, logits)
    parts = [
        VideoScores(*(field[ids] for field in whole)) for ids in np.split(np.random.default_rng(1).permutation(40), 4)
    ]
    for joined, expected in zip(join(parts), whole, strict=True):
        np.testing.assert_array_equal(joined, expected)

"""The scores of videos, one for each class, and the metrics that follow from them.

Each way of labelling has a class here: `SingleLabel`, where every video has one label, and `MultiLabel`, where it has
any number of labels. Both hold the part that runs on the devices, `average_views`, and the part that runs on the host,
which reads all `VideoScores` of an evaluation. Sums are taken in float64, in the order of the videos.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.labels import ONE
from vidformers.errors import require

NUM_BEST = 5  # the number of classes that are kept as the best of a video


class VideoScores(NamedTuple):
    """The scores of the videos of one batch or of one evaluation, for v videos and n classes.

    Attributes:
        id: int32 (v), the index of the video in the manifest.
        label: int32 (v) of single labels, or float32 (v n), 1 for the labels of a video and 0 for other classes.
        scores: float32 (v n), see `SingleLabel.average_views` and `MultiLabel.average_views`.
        best: int32 (v, 5), or (v n) with fewer classes: the classes of the highest scores, the highest first. Among
            equal scores, the lower class comes first. So a model of constant output is right for class 0 alone.
    """

    id: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    best: np.ndarray


def best_classes(scores: jax.Array) -> jax.Array:
    """Returns the field `best` of `VideoScores`, for scores (b n) on the devices."""
    return jax.lax.top_k(scores, min(NUM_BEST, scores.shape[1]))[1]


def join(batches: list[VideoScores]) -> VideoScores:
    """Returns the scores of all batches, ordered by `id`."""
    joined = VideoScores(*map(np.concatenate, zip(*batches, strict=True)))
    order = np.argsort(joined.id, kind="stable")
    if (np.diff(order) == 1).all():  # spares a copy of the scores
        return joined
    return VideoScores(*(field[order] for field in joined))


def average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the average precision of one class, or None if no video has the class.

    It is the area under the steps of precision over recall, without interpolation: the sum of (R_k - R_{k-1}) P_k over
    the distinct scores s_1 > s_2 > ..., where P_k and R_k are the precision and the recall of the videos whose score is
    at least s_k, and R_0 = 0. Videos with equal scores are therefore taken together, and their order has no influence.
    `average_precision_score` of scikit-learn defines it in the same way.

    Args:
        is_positive: bool (v), whether the video has the class.
        scores: (v).
    """
    count = int(is_positive.sum())
    if count == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    is_last = np.append(ranked[1:] != ranked[:-1], True)  # of the videos with equal scores
    positives = np.cumsum(is_positive[order])[is_last]
    videos = np.flatnonzero(is_last) + 1
    return float((np.diff(positives, prepend=0) * (positives / videos)).sum() / count)


@dataclass(frozen=True)
class SingleLabel:
    """Every video has one label. The score of a class is the logarithm of its probability, by softmax."""

    has_several_labels = False
    main_metric, headline = "top1", "top-1"
    selecting_metrics = ("top1", "top5", "mean_class_top1")  # those of which a higher value is better

    def average_views(self, logits: jax.Array, average: str) -> jax.Array:
        """Returns log-probabilities (b n) of logits (v b n), averaged over the views as 'probabilities' or 'logits'."""
        if average == "logits":
            return jax.nn.log_softmax(logits.mean(axis=0))
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns the probabilities of scores."""
        return np.exp(scores)

    def labels(self, label: np.ndarray) -> list[int]:
        """Returns the labels of a video, given its row of the field `label`."""
        return [int(label)]

    def count_predicted(self, probabilities: np.ndarray) -> int:
        """Returns how many of the likeliest classes are predicted for a video with these probabilities (n)."""
        return 1

    def metrics(self, videos: VideoScores, classes: None = None) -> dict[str, float]:
        """Returns `top1`, `top5`, `loss`, and `mean_class_top1`, which ignores classes without videos."""
        is_label = videos.best == videos.label[:, None]
        log_p = np.take_along_axis(videos.scores, videos.label[:, None], axis=1).astype(np.float64)
        top1_of_classes = [row["top1"] for row in self._top1_of_classes(videos) if row["videos"]]
        return {
            "top1": float(is_label[:, 0].mean()),
            "top5": float(is_label.any(axis=1).mean()),
            "loss": float(-log_p.mean()),
            "mean_class_top1": float(np.mean(top1_of_classes)),
        }

    def confusion(self, videos: VideoScores) -> np.ndarray:
        """Returns counts of videos (true class, predicted class)."""
        confusion = np.zeros((videos.scores.shape[1],) * 2, np.int64)
        np.add.at(confusion, (videos.label, videos.best[:, 0]), 1)
        return confusion

    def class_metrics(self, videos: VideoScores) -> list[dict[str, Any]]:
        """Returns the metrics of each class: `videos`, `top1` and `average_precision`. They are None without videos."""
        return [
            row | {"average_precision": average_precision(videos.label == label, videos.scores[:, label])}
            for label, row in enumerate(self._top1_of_classes(videos))
        ]

    def _top1_of_classes(self, videos: VideoScores) -> list[dict[str, Any]]:
        num_classes = videos.scores.shape[1]
        counts = np.bincount(videos.label, minlength=num_classes).tolist()
        correct = np.bincount(videos.label[videos.best[:, 0] == videos.label], minlength=num_classes).tolist()
        return [
            {"videos": count, "top1": right / count if count else None}
            for count, right in zip(counts, correct, strict=True)
        ]


SINGLE_LABEL = SingleLabel()


@dataclass(frozen=True)
class MultiLabel:
    """A video has any number of labels. The score of a class is the logit of its probability, by the sigmoid.

    Args:
        threshold: a class is predicted if its probability is above this number.
    """

    threshold: float = 0.5

    has_several_labels = True
    main_metric, headline = "mAP", "mAP"
    selecting_metrics = ("mAP",)

    def average_views(self, logits: jax.Array, average: str) -> jax.Array:
        """Returns logits (b n) of logits (v b n), averaged over the views as 'probabilities' or 'logits'.

        The average probability p is returned as log(p / (1 - p)), which in float32 tells apart probabilities near 1.
        """
        if average == "logits":
            return logits.mean(axis=0)
        log_p, log_not_p = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0) for x in (logits, -logits))
        return log_p - log_not_p

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns the probabilities of scores."""
        return np.exp(-np.logaddexp(0, -scores))

    def labels(self, label: np.ndarray) -> list[int]:
        """Returns the labels of a video, given its row of the field `label`."""
        return np.flatnonzero(label).tolist()

    def count_predicted(self, probabilities: np.ndarray) -> int:
        """Returns how many of the likeliest classes are predicted for a video with these probabilities (n)."""
        return int((probabilities > self.threshold).sum())

    def metrics(self, videos: VideoScores, classes: list[dict[str, Any]]) -> dict[str, float]:
        """Returns the mean average precision `mAP` and the `loss`.

        `mAP` is the mean of `average_precision` over the classes that a video has. `loss` is the binary cross-entropy,
        averaged over videos and classes.

        Args:
            videos: the scores.
            classes: what `class_metrics` returned for them.
        Raises:
            ConfigError: no video has a label.
        """
        present = [row["average_precision"] for row in classes if row["average_precision"] is not None]
        require(
            present,
            f"None of the {len(videos.id)} videos that were evaluated has a label, so there is no average precision. "
            "Write labels into the list.",
        )
        losses = [_binary_cross_entropy(videos.label[:, k], videos.scores[:, k]) for k in range(len(classes))]
        return {"mAP": float(np.mean(present)), "loss": float(np.mean(losses))}

    def confusion(self, videos: VideoScores) -> None:
        """Returns None. A confusion matrix needs one label and one prediction for each video."""
        return None

    def class_metrics(self, videos: VideoScores) -> list[dict[str, Any]]:
        """Returns the metrics of each class: `videos`, `average_precision`, `precision` and `recall`.

        The last two are those of the videos whose probability is above the threshold. A metric is None if it is the
        share of no videos.
        """
        rows = []
        for label in range(videos.scores.shape[1]):
            is_positive, scores = videos.label[:, label] > 0, videos.scores[:, label]
            is_predicted = self.probabilities(scores) > self.threshold
            correct, positives, predicted = (
                int(x.sum()) for x in (is_positive & is_predicted, is_positive, is_predicted)
            )
            rows.append(
                {
                    "videos": positives,
                    "average_precision": average_precision(is_positive, scores),
                    "precision": correct / predicted if predicted else None,
                    "recall": correct / positives if positives else None,
                }
            )
        return rows


def scoring_of(labels: str, threshold: float) -> SingleLabel | MultiLabel:
    """Returns how videos are scored, for the fields data.labels and eval.threshold of a config."""
    return SINGLE_LABEL if labels == ONE else MultiLabel(threshold)


def _binary_cross_entropy(label: np.ndarray, logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    return float((np.logaddexp(0, logits) - label * logits).mean())

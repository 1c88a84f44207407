"""Evaluation: views of a video averaged, every video counted once on any number of devices, sums not means of means."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers.errors import require
from vidformers.sharding import batch_sharding, put_batch, replicated


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The section `eval`: `clips` x `crops` views a video.

    Args:
        average: 'probabilities' or 'logits', what is averaged over views.
        batch_size: videos at once over all devices.
        frames: of a view, spread over the whole video, for a model that takes any number; None is as in training.
        views_at_once: of each of those videos; memory grows with this, not with the number of views.
        on_bad: a video that will not decode is an 'error', or left out and counted ('skip').
        checkpoint: which one `--mode=eval` reads, 'latest' or 'best'.
    """

    clips: int = 1
    crops: int = 3
    frames: int | None = None
    average: str = "probabilities"
    batch_size: int = 8
    views_at_once: int = 1
    on_bad: str = "error"
    checkpoint: str = "latest"

    def __post_init__(self):
        for name in ("clips", "crops", "batch_size", "views_at_once"):
            require(getattr(self, name) >= 1, f"eval.{name}={getattr(self, name)} must be at least 1.")
        require(self.frames is None or self.frames >= 1, f"eval.frames={self.frames} must be at least 1.")
        for name, choices in (("average", ("probabilities", "logits")), ("on_bad", ("error", "skip")),
                              ("checkpoint", ("latest", "best"))):
            require(getattr(self, name) in choices,
                    f"eval.{name}={getattr(self, name)!r} must be {' or '.join(choices)}.")

    @property
    def name(self) -> str:
        return f"{self.clips}x{self.crops}"


class Sums(NamedTuple):
    """What a batch adds: videos counted, their summed loss, how many are right, and true x predicted counts."""

    count: jax.Array
    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    confusion: jax.Array


class Result(NamedTuple):
    figures: dict  # 'val/top1@4x3' and the like, fractions
    confusion: np.ndarray  # true x predicted, counts
    skipped: list  # (id, error) of videos left out


def scores(model, video, index, average: str, views_at_once: int):
    """Log-probabilities (b k) of videos (b v t y x c), averaged over the views v; index (b v t) or None."""
    return _averaged(_over_views(model, video, index, views_at_once), average)


def answers(model, video, index, average: str, views_at_once: int):
    """The log-probabilities of `scores`, and what the head reads, the mean over the views (b d)."""
    features = _over_views(model.features, video, index, views_at_once)
    return _averaged(model.head(features), average), features.mean(axis=0)


def _over_views(run, video, index, views_at_once):
    """What `run` gives of each view, (v b ...)."""
    views = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (video, index))
    return jax.lax.map(lambda view: run(view[0], index=view[1]), views, batch_size=min(views_at_once, video.shape[1]))


def _averaged(logits, average: str):
    """Log-probabilities (b k) of the logits of views (v b k), by the mean of their 'probabilities' or 'logits'."""
    if average == "logits":
        return jax.nn.log_softmax(logits.mean(axis=0))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))


def batch_sums(graph, average: str, views_at_once: int, parameters, batch) -> Sums:
    """The sums of one batch {video, index, label, mask}; rows of mask 0 count nowhere."""
    log_p = scores(nnx.merge(graph, parameters), batch["video"], batch.get("index"), average, views_at_once)
    label, mask = batch["label"], batch["mask"]
    own = jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]
    classes = log_p.shape[1]
    predicted = jnp.argmax(log_p, axis=1)
    # Ties go to the lower class, as argmax has it, so top-5 is never below top-1 nor generous to a constant output.
    lower = jnp.arange(classes) < label[:, None]
    rank = jnp.sum((log_p > own[:, None]) | ((log_p == own[:, None]) & lower), axis=1)
    confusion = jnp.zeros((classes, classes), jnp.float32).at[label, predicted].add(mask)
    return Sums(mask.sum(), -(own * mask).sum(), ((rank < 1) * mask).sum(), ((rank < 5) * mask).sum(), confusion)


class Evaluator:
    """Evaluates parameters under a protocol; compiled once."""

    def __init__(self, graph, mesh, parameter_shardings, protocol: Protocol):
        rows = mesh.size
        require(protocol.batch_size % rows == 0,
                f"eval.batch_size={protocol.batch_size} must be divisible by the {rows} devices.")
        self.mesh, self.protocol = mesh, protocol
        self.step = jax.jit(partial(batch_sums, graph, protocol.average, protocol.views_at_once),
                            in_shardings=(parameter_shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))

    def __call__(self, parameters, batches, bad_video, advance=lambda videos: None) -> Result:
        """Runs over `batches` of {video (b v t y x c), label, mask, id, error}.

        Raises:
            the exception that `bad_video(id, error)` returns, for a row that would not decode, unless on_bad='skip'.
        """
        total, skipped = None, []
        for batch in batches:
            for row in np.flatnonzero((batch["mask"] == 0) & (batch["id"] >= 0)):
                error = batch["error"][row].decode("utf-8", "replace")
                if self.protocol.on_bad == "error":
                    raise bad_video(int(batch["id"][row]), error)
                skipped.append((int(batch["id"][row]), error))
            sums = self.step(parameters, put_batch(self.mesh, batch))
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
            advance(len(batch["mask"]))
        require(total is not None and total.count > 0, "data.val: no video of it could be evaluated.")
        figures = {name: float(getattr(total, name) / total.count) for name in ("top1", "top5", "loss")}
        per_class = np.diag(total.confusion) / np.maximum(total.confusion.sum(axis=1), 1)
        figures["mean_class_top1"] = float(per_class[total.confusion.sum(axis=1) > 0].mean())
        figures["videos"] = float(total.count)
        return Result({f"val/{key}@{self.protocol.name}": value for key, value in figures.items()},
                      total.confusion.astype(np.int64), skipped)

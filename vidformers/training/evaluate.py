"""Evaluation: views of a video averaged, every video counted once on any number of devices, sums not means of means."""

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers.errors import require
from vidformers.models.fuse import fuse_projections
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch, put_batch
from vidformers.parallel.mesh import num_batch_shards, with_mesh
from vidformers.parallel.processes import allgather_strings, barrier
from vidformers.parallel.state import replicated_sharding

_MOST = 32  # videos of a device at once: more make no model faster


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """The section `eval`: `clips` x `crops` views a video.

    Args:
        average: 'probabilities' or 'logits', what is averaged over views.
        batch_size: videos at once over all devices; None is as many as fit in their memory and, as often as workers
            keep batches ready, in the host's, up to 32 each.
        frames: of a view, spread over the whole video, for a model that takes any number; None is as in training.
        views_at_once: of each of those videos; memory grows with this, not with the number of views.
        on_bad: a video that will not decode is an 'error', or left out and counted ('skip').
        checkpoint: which one `--mode=eval` reads, 'latest' or 'best'.
    """

    clips: int = 1
    crops: int = 3
    frames: int | None = None
    average: str = "probabilities"
    batch_size: int | None = None
    views_at_once: int = 1
    on_bad: str = "error"
    checkpoint: str = "latest"

    def __post_init__(self):
        for name in ("clips", "crops", "batch_size", "views_at_once", "frames"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"eval.{name}={value} must be at least 1.")
        for name, choices in (
            ("average", ("probabilities", "logits")),
            ("on_bad", ("error", "skip")),
            ("checkpoint", ("latest", "best")),
        ):
            require(
                getattr(self, name) in choices, f"eval.{name}={getattr(self, name)!r} must be {' or '.join(choices)}."
            )

    @property
    def name(self) -> str:
        return f"{self.clips}x{self.crops}"


class EvalSums(NamedTuple):
    """What a batch adds: videos counted, their summed loss, how many are right, and true x predicted counts."""

    count: jax.Array
    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    confusion: jax.Array


class EvalResult(NamedTuple):
    metrics: dict  # 'val/top1@4x3' and the like, fractions
    confusion: np.ndarray  # true x predicted, counts
    skipped: list  # (id, error) of videos left out


def log_probabilities(model, video, index, average: str, views_at_once: int):
    """Log-probabilities (b k) of videos (b v t y x c), averaged over the views v; index (b v t) or None."""
    return _averaged(_over_views(model, video, index, views_at_once), average)


def log_probabilities_and_features(model, video, index, average: str, views_at_once: int):
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


def batch_sums(graph, average: str, views_at_once: int, parameters, batch) -> EvalSums:
    """The sums of one batch {video, index, label, mask}; rows of mask 0 count nowhere."""
    log_p = log_probabilities(
        fuse_projections(nnx.merge(graph, parameters)), batch["video"], batch.get("index"), average, views_at_once
    )
    label, mask = batch["label"], batch["mask"]
    own = jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]
    classes = log_p.shape[1]
    predicted = jnp.argmax(log_p, axis=1)
    # Ties go to the lower class, as argmax has it, so top-5 is never below top-1 nor generous to a constant output.
    lower = jnp.arange(classes) < label[:, None]
    rank = jnp.sum((log_p > own[:, None]) | ((log_p == own[:, None]) & lower), axis=1)
    confusion = jnp.zeros((classes, classes), jnp.float32).at[label, predicted].add(mask)
    return EvalSums(mask.sum(), -(own * mask).sum(), ((rank < 1) * mask).sum(), ((rank < 5) * mask).sum(), confusion)


class Evaluator:
    """Evaluates parameters under a protocol; compiled once."""

    def __init__(self, graph, mesh, parameter_shardings, protocol: EvalProtocol):
        parts = num_batch_shards(mesh)
        require(
            (protocol.batch_size or 0) % parts == 0,
            f"eval.batch_size={protocol.batch_size} must be divisible by mesh.data x mesh.fsdp={parts} parts.",
        )
        require(
            (protocol.frames or 0) % mesh.shape["context"] == 0,
            f"eval.frames={protocol.frames} must be divisible by mesh.context={mesh.shape['context']}.",
        )
        self.mesh, self.protocol = mesh, protocol
        self.step = jax.jit(
            with_mesh(mesh, partial(batch_sums, graph, protocol.average, protocol.views_at_once)),
            in_shardings=(parameter_shardings, None),
            out_shardings=replicated_sharding(mesh),
        )
        self.programs = {}  # by the shape of a batch's video

    def choose_batch_size(
        self, parameters, frames: int, size: int, others: int = 0, room: float = math.inf, most: float = math.inf
    ) -> int:
        """`eval.batch_size`, or as many videos as fit in memory, of clips (frames size size 3).

        What two small batches need, by the compiler's account, says what any would. All processes come to the same.

        Args:
            others: bytes that a device holds beside the parameters.
            room: bytes that the clips of a batch of this process may have.
            most: videos of a batch, beyond which workers go without.
        """
        if self.protocol.batch_size is not None:
            return self.protocol.batch_size
        # Processes compile what they try, and must try the same: on GPUs each has a share in tuning a program.
        told = allgather_strings(json.dumps([memory.bytes_available() - others, room]))
        limit, room = map(min, zip(*map(json.loads, told), strict=True))
        parts = num_batch_shards(self.mesh)
        video = self.protocol.clips * self.protocol.crops * frames * size * size * 3

        def needed(each: int) -> float:
            try:
                return memory.program_bytes(self.compiled(parameters, each * parts, frames, size))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                return math.inf

        bounds = [_MOST, room * jax.process_count() // (video * parts), most // parts]
        one, two = needed(1), needed(2)
        if two < math.inf:
            bounds.append(1 + (limit - one) // max(two - one, 1))
        each = 2 ** (int(max(min(bounds), 1)).bit_length() - 1)
        while each > 1 and needed(each) > limit:
            each //= 2
        return min(map(int, allgather_strings(str(each)))) * parts

    def compiled(self, parameters, videos: int, frames: int, size: int):
        """The program for batches of so many videos."""
        video = (videos, self.protocol.clips * self.protocol.crops, frames, size, size, 3)
        return self.step.lower(parameters, abstract_batch(self.mesh, video)).compile()

    def program(self, parameters, batch):
        """`step`, before whose first run all processes have compiled it."""
        shape = batch["video"].shape
        if shape not in self.programs:
            self.programs[shape] = self.step.lower(parameters, batch).compile()
            barrier()
        return self.programs[shape](parameters, batch)

    def __call__(self, parameters, batches, bad_video, advance=lambda videos: None) -> EvalResult:
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
            sums = self.program(parameters, put_batch(self.mesh, batch))
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
            advance(len(batch["mask"]) * jax.process_count())
        require(total is not None and total.count > 0, "data.val: no video of it could be evaluated.")
        figures = {name: float(getattr(total, name) / total.count) for name in ("top1", "top5", "loss")}
        per_class = np.diag(total.confusion) / np.maximum(total.confusion.sum(axis=1), 1)
        figures["mean_class_top1"] = float(per_class[total.confusion.sum(axis=1) > 0].mean())
        figures["videos"] = float(total.count)
        skipped = [tuple(video) for told in allgather_strings(json.dumps(skipped)) for video in json.loads(told)]
        return EvalResult(
            {f"val/{key}@{self.protocol.name}": value for key, value in figures.items()},
            total.confusion.astype(np.int64),
            sorted(skipped),
        )

"""Evaluation: averages the views of each video and counts each video once, on any number of devices.

Each batch yields the scores of its videos. The metrics are computed from the scores of all videos, in the order of the
videos, so that neither the batch size nor the devices change a metric.
"""

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers.errors import ConfigError, multiples_near, require, require_types
from vidformers.models.fuse import fuse_projections
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch, put_batch, put_field
from vidformers.parallel.mesh import num_batch_shards, with_mesh
from vidformers.parallel.processes import allgather_strings, barrier
from vidformers.parallel.state import replicated_sharding
from vidformers.training.scoring import SINGLE_LABEL, VideoScores, best_classes, join
from vidformers.training.stopping import StopSignal

_MAX_VIDEOS_PER_DEVICE = 32  # larger batches made no model faster
_MOST = 1_000_000  # views, frames of a view, or videos


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """The config section `eval`.

    Args:
        clips, crops: each video is evaluated in `clips` x `crops` views.
        frames: frames per view, for models that take any number of frames: spread over the whole video, or with
            data.sampling='slowfast' the first frames at data.fps. None takes the number of frames of training.
        average: what is averaged over the views, 'probabilities' or 'logits'.
        batch_size: videos per batch over all devices. None takes the largest batch that fits in device memory, with at
            most 32 videos per device. All prefetched batches must also fit in half of the host's available memory.
        views_at_once: views of each video that run together. Memory grows with this number, not with `clips` x `crops`.
        on_bad: 'error' stops the evaluation at a video that cannot be decoded; 'skip' excludes the video and reports
            it.
        checkpoint: the checkpoint that `--mode=eval` reads, 'latest' or 'best'.
        threshold: with data.labels='many', a class is predicted if its probability is above this number.

    Raises:
        ConfigError: a field is out of range.
    """

    clips: int = 1
    crops: int = 3
    frames: int | None = None
    average: str = "probabilities"
    batch_size: int | None = None
    views_at_once: int = 1
    on_bad: str = "error"
    checkpoint: str = "latest"
    threshold: float = 0.5

    def __post_init__(self):
        require_types("eval", vars(self), type(self))
        for name in ("clips", "crops", "batch_size", "views_at_once", "frames"):
            value = getattr(self, name)
            require(value is None or 1 <= value <= _MOST, f"eval.{name}={value} must be from 1 to {_MOST:,}.")
        for name, choices in (
            ("average", ("probabilities", "logits")),
            ("on_bad", ("error", "skip")),
            ("checkpoint", ("latest", "best")),
        ):
            require(
                getattr(self, name) in choices, f"eval.{name}={getattr(self, name)!r} must be {' or '.join(choices)}."
            )
        require(0 < self.threshold < 1, f"eval.threshold={self.threshold} must be above 0 and below 1.")

    @property
    def name(self) -> str:
        """The suffix of the metrics' names, such as '4x3'."""
        return f"{self.clips}x{self.crops}"


class EvalResult(NamedTuple):
    """The result of an evaluation. `videos` is None in all processes but process 0, which keeps all scores.

    The scores take 4 bytes for each class of each video in the memory of the host: 32 MB for 20,000 videos and 400
    classes, 700 MB for 250,000 videos and 700 classes.
    """

    metrics: dict  # {'val/top1@4x3': fraction, ...}
    skipped: list  # (id, error) of each video that could not be decoded
    videos: VideoScores | None
    classes: list[dict] | None = None  # the metrics of each class, if those of all classes are computed from them

    def of_part(self, part: str) -> "EvalResult":
        """Returns the result with metrics named after a part of the data, such as 'test/top1@4x3'."""
        return self._replace(metrics={f"{part}/{name.partition('/')[2]}": x for name, x in self.metrics.items()})


def view_scores(model, video, index, protocol: EvalProtocol, scoring=SINGLE_LABEL):
    """Returns scores (b n) averaged over the views v of videos (b v t y x c), for n classes.

    Args:
        model: (video (b t y x c), index=(b t)) -> logits (b n).
        index: the frame indices (b v t), or None.
        protocol: its fields `average` and `views_at_once` are read.
        scoring: see `vidformers.training.scoring`.
    """
    return scoring.average_views(_map_views(model, video, index, protocol.views_at_once), protocol.average)


def view_scores_and_features(model, video, index, protocol: EvalProtocol, scoring=SINGLE_LABEL):
    """Returns the result of `view_scores`, and the input of the head averaged over the views (b d)."""
    features = _map_views(model.features, video, index, protocol.views_at_once)
    return scoring.average_views(model.head(features), protocol.average), features.mean(axis=0)


def prediction_step(graph, mesh, parameter_shardings, protocol: EvalProtocol, scoring=SINGLE_LABEL):
    """Returns a jitted function (parameters, batch) -> scores (b classes) and features (b d).

    Args:
        graph: the graph definition of the model.
        mesh: the device mesh.
        parameter_shardings: the shardings of the parameters.
        protocol: how the views of a video are averaged.
        scoring: what the scores are, see `vidformers.training.scoring`.
    """

    def predict(parameters, batch):
        model = fuse_projections(nnx.merge(graph, parameters))
        return view_scores_and_features(model, batch["video"], batch["index"], protocol, scoring)

    replicated = replicated_sharding(mesh)
    return jax.jit(with_mesh(mesh, predict), in_shardings=(parameter_shardings, None), out_shardings=replicated)


def _map_views(run, video, index, views_at_once):
    """Returns the outputs of `run` for each view, stacked: (v b ...)."""
    views = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (video, index))
    return jax.lax.map(lambda view: run(view[0], index=view[1]), views, batch_size=min(views_at_once, video.shape[1]))


def batch_scores(graph, protocol: EvalProtocol, scoring, parameters, batch) -> dict[str, jax.Array]:
    """Returns {scores, best} of one batch {video, index, ...}, see `VideoScores`, and its small fields as they are.

    The small fields go through the step so that each process gets the rows of all processes in the same order.
    """
    model = fuse_projections(nnx.merge(graph, parameters))  # the same output with fewer multiply-adds
    scores = view_scores(model, batch["video"], batch.get("index"), protocol, scoring)
    small = {name: batch[name] for name in ("id", "label", "mask", "stop") if name in batch}
    return small | {"scores": scores, "best": best_classes(scores)}


class Evaluator:
    """Evaluates parameters by one protocol. Each batch shape is compiled once.

    Args:
        graph: the graph definition of the model.
        mesh: the device mesh.
        parameter_shardings: the shardings of the parameters.
        protocol: the config section `eval`.
        scoring: whether videos have one label or several, see `vidformers.training.scoring`.

    Raises:
        ConfigError: the batch size or the frames of the protocol cannot be divided among the devices.
    """

    def __init__(self, graph, mesh, parameter_shardings, protocol: EvalProtocol, scoring=SINGLE_LABEL):
        shards = num_batch_shards(mesh)
        require(
            (protocol.batch_size or 0) % shards == 0,
            f"eval.batch_size={protocol.batch_size} must be divisible by mesh.data x mesh.fsdp={shards}. Set "
            f"eval.batch_size to {multiples_near(shards, protocol.batch_size or 0)}.",
        )
        require(
            (protocol.frames or 0) % mesh.shape["context"] == 0,
            f"eval.frames={protocol.frames} must be divisible by mesh.context={mesh.shape['context']}. Set "
            f"eval.frames to {multiples_near(mesh.shape['context'], protocol.frames or 0)}.",
        )
        self.mesh, self.protocol, self.scoring = mesh, protocol, scoring
        self.step = jax.jit(
            with_mesh(mesh, partial(batch_scores, graph, protocol, scoring)),
            in_shardings=(parameter_shardings, None),
            out_shardings=replicated_sharding(mesh),
        )
        self.programs = {}  # shape of the field `video` -> compiled `step`
        self._other_bytes = 0  # on a device besides the parameters

    def choose_batch_size(
        self,
        parameters,
        frames: int,
        size: int,
        other_bytes: int = 0,
        max_batch_bytes: float = math.inf,
        max_videos: float = math.inf,
    ) -> int:
        """Returns `eval.batch_size`, or the largest batch that fits in memory, for clips (frames size size 3).

        Compiles for 1 and 2 videos per device, reads the memory that the compiler reports, and extrapolates linearly to
        larger batches. All processes return the same number.

        Args:
            other_bytes: bytes on a device besides the parameters.
            max_batch_bytes: upper limit for the bytes of the clips in this process's part of a batch.
            max_videos: upper limit for the videos of a batch. With larger batches, some workers would get no batch.
        """
        self._other_bytes = other_bytes
        if self.protocol.batch_size is not None:
            return self.protocol.batch_size
        # Every process must compile the same programs in this search: on GPUs, processes share the autotuning of a
        # program. So all of them search with the smallest limits of any process.
        limits = allgather_strings(json.dumps([memory.bytes_available() - other_bytes, max_batch_bytes]))
        limit, max_batch_bytes = map(min, zip(*map(json.loads, limits), strict=True))
        shards = num_batch_shards(self.mesh)
        video_bytes = self.protocol.clips * self.protocol.crops * frames * size * size * 3

        def needed(per_shard: int) -> float:
            _, count = memory.compile_within(limit, lambda: self.compile(parameters, per_shard * shards, frames, size))
            return math.inf if count is None else count

        bounds = [
            _MAX_VIDEOS_PER_DEVICE,
            max_batch_bytes * jax.process_count() // (video_bytes * shards),
            max_videos // shards,
        ]
        one, two = needed(1), needed(2)
        if two < math.inf:
            bounds.append(1 + (limit - one) // max(two - one, 1))
        # Rounding down to a power of two leaves a margin for the extrapolation.
        per_shard = 2 ** (int(max(min(bounds), 1)).bit_length() - 1)
        while per_shard > 1 and needed(per_shard) > limit:
            per_shard //= 2
        # The minimum, in case the memory that a process reads from its own programs differs.
        return min(map(int, allgather_strings(str(per_shard)))) * shards

    def compile(self, parameters, videos: int, frames: int, size: int):
        """Returns `step` compiled for batches of `videos` videos."""
        video = (videos, self.protocol.clips * self.protocol.crops, frames, size, size, 3)
        batch = abstract_batch(self.mesh, video, stop=jax.process_count() > 1)
        return self.step.lower(parameters, batch).compile()

    def run_step(self, parameters, batch) -> dict[str, np.ndarray]:
        """Runs `step` and returns its rows on the host.

        For a new batch shape: compiles, waits until all processes have compiled, then runs.
        The wait is needed because processes compile at different speeds, see `barrier`.
        """
        shape = batch["video"].shape
        if shape not in self.programs:
            self.programs[shape] = self._compile_within_memory(parameters, batch)
            barrier()
        return jax.tree.map(np.asarray, self.programs[shape](parameters, batch))

    def _compile_within_memory(self, parameters, batch) -> jax.stages.Compiled:
        """Returns `step` compiled for a batch. Raises ConfigError if it does not fit in the memory of a device."""
        limit = memory.bytes_available() - self._other_bytes
        compiled, needed = memory.compile_within(limit, lambda: self.step.lower(parameters, batch).compile())
        if compiled is not None:
            return compiled
        videos, shards = len(batch["video"]), num_batch_shards(self.mesh)
        advice = (
            "Lower eval.batch_size, or leave it at none, which chooses the largest batch that fits."
            if videos > shards
            else "Use more devices with mesh.fsdp, or lower eval.views_at_once or eval.frames."
        )
        program = f"A step of the evaluation with eval.batch_size={videos}"
        raise ConfigError(f"{memory.shortage(program, limit, needed)} {advice}")

    def __call__(
        self, parameters, batches, make_error, stop: StopSignal, advance=lambda videos: None, field: str = "data.val"
    ) -> EvalResult | None:
        """Evaluates `parameters` on all `batches`. Returns None if a signal has stopped the evaluation.

        Args:
            batches: an iterable of {video (b v t y x c), label, mask, id, error}. Among rows with mask 0,
                id < 0 means padding, and id >= 0 means a video that could not be decoded.
            make_error: (id, error) -> the exception to raise for a video that could not be decoded. Not called if
                `eval.on_bad` is 'skip'.
            stop: the evaluation ends after the batch at which all processes agree to stop.
            advance: called after each batch with the number of its rows in all processes.
            field: the config field that names the list of the videos, for errors.

        Raises:
            ConfigError: no video could be evaluated, or a batch does not fit in the memory of a device.
        """
        collected, num_videos, skipped = [], 0, []
        for batch in batches:
            for row in np.flatnonzero((batch["mask"] == 0) & (batch["id"] >= 0)):
                error = batch["error"][row].decode("utf-8", "replace")
                if self.protocol.on_bad == "error":
                    raise make_error(int(batch["id"][row]), error)
                skipped.append((int(batch["id"][row]), error))
            on_devices = put_batch(self.mesh, stop.attach_flag(batch))
            rows = self.run_step(parameters, on_devices | {"id": put_field(self.mesh, "id", batch["id"])})
            stop.read_flag(float(rows["stop"].sum()) if "stop" in rows else 0.0)
            if stop.agreed:
                return None
            is_video = rows["mask"] > 0
            num_videos += int(is_video.sum())
            if jax.process_index() == 0:
                collected.append(VideoScores(*(rows[name][is_video] for name in VideoScores._fields)))
            advance(len(batch["mask"]) * jax.process_count())
        require(num_videos > 0, f"{field}: none of its videos could be evaluated.")
        videos = join(collected) if collected else None
        classes = self.scoring.class_metrics(videos) if videos and self.scoring.has_several_labels else None
        skipped_per_process = allgather_strings(json.dumps(skipped))
        return EvalResult(
            self._metrics(videos, classes),
            sorted(tuple(video) for videos in skipped_per_process for video in json.loads(videos)),
            videos,
            classes,
        )

    def _metrics(self, videos: VideoScores | None, classes: list[dict] | None) -> dict[str, float]:
        """Returns the metrics of process 0, which has the scores, in all processes."""
        metrics = self.scoring.metrics(videos, classes) | {"videos": float(len(videos.id))} if videos else {}
        metrics = json.loads(allgather_strings(json.dumps(metrics))[0])
        return {f"val/{name}@{self.protocol.name}": value for name, value in metrics.items()}

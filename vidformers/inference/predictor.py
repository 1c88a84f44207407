"""A trained model that predicts and explains videos from Python."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from input_pipeline import Pipeline
from input_pipeline.annotations import Record
from input_pipeline.clip_lengths import median_seconds
from input_pipeline.json_files import JsonError, read_json, with_tuples
from input_pipeline.labels import ONE
from vidformers import pretrained
from vidformers.errors import ConfigError, require, require_path
from vidformers.inference.clip import Clip, Video, decoding_error, video_records
from vidformers.inference.explain.explainer import Explainer, Explanation
from vidformers.inference.timeline.model import model_segments, model_windows
from vidformers.inference.timeline.segments import Timeline
from vidformers.models.registry import build, check_fields
from vidformers.parallel import memory
from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.config import CheckpointConfig
from vidformers.training.evaluate import EvalProtocol, prediction_step
from vidformers.training.optim import OptimConfig, make_optimizer
from vidformers.training.remarks import VideoRemarks
from vidformers.training.run_json import read_run_json
from vidformers.training.run_weights import open_run
from vidformers.training.scoring import scoring_of
from vidformers.training.setup import abstract_state
from vidformers.training.workdir import with_default_sections

# The fields of the section `data` that determine how clips are cut from a video.
CLIP_FIELDS = ("sampling", "stride", "fps", "test_starts", "frame_rate", "size", "test_short_side", "resize")
# The sections that `load` takes from `run.json`, by the functions that take their fields.
_FIELDS: dict[str, Callable] = {
    "data": Pipeline,
    "eval": EvalProtocol,
    "optim": OptimConfig,
    "checkpoint": Checkpoints,
    "init": pretrained.Init,
}
_TOP = 5
_BATCH_SIZE = 8  # videos per full batch if eval.batch_size is not set


class Prediction(NamedTuple):
    """The prediction for one video.

    Attributes:
        video: the path of the video, or 'array N' for the frames at place N of the list, from 0.
        probabilities: (classes), averaged over the views: by softmax, or with several labels a video by the sigmoid.
            None if the video cannot be decoded.
        features: (d), the input of the head, averaged over the views, or None.
        error: why the video cannot be decoded, or ''.
    """

    video: str
    probabilities: np.ndarray | None
    features: np.ndarray | None
    error: str


def load(workdir: str | os.PathLike) -> "Predictor":
    """Loads the model of a run: `load("runs/demo").predict("clip.mp4")`.

    Raises:
        ConfigError: the folder has no run, no checkpoint, or a run of another version of vidformers.
    """
    workdir = require_path("workdir", workdir)
    config = read_run_json(workdir)["config"]
    for section in ("model", "data", "eval", "optim", "mesh", "checkpoint", "init"):
        require(
            section in config,
            f"{workdir}/run.json has no section {section!r}, so another version of vidformers wrote it. Load the run "
            "with that version.",
        )
    for section, function in _FIELDS.items():
        unknown = sorted(config[section].keys() - inspect.signature(function).parameters.keys())
        require(
            not unknown,
            f"{workdir}/run.json has the field {section}.{(unknown or [''])[0]}, which this version of vidformers does "
            "not know. Load the run with the version that wrote it, or restore the file if it is damaged.",
        )
    # The attention backend and the devices of the training machine may not be available here.
    config["model"] |= {"backend": "auto"}
    config["mesh"] = {}
    return Predictor(with_tuples(config), workdir)


def load_export(folder: str | os.PathLike, config: dict[str, Any]) -> "Predictor":
    """Loads the model of an export, see `vidformers.inference.export`.

    Args:
        folder: the folder of the export.
        config: the config of a run, which gives the sections that an export does not have.
    Raises:
        ConfigError: the folder holds no export, or a file of it is damaged.
    """
    path = Path(folder) / "config.json"
    try:
        model = read_json(path, {"model": {"name": str}})["model"] | {"backend": "auto"}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the folder of an export.") from None
    except JsonError as error:
        raise ConfigError(
            f"{path} {error}. It does not describe a model of an export: write the export again."
        ) from None
    try:
        check_fields(**with_tuples(model))
    except ConfigError as error:
        raise ConfigError(f"{path} does not describe a model of this version: {error}") from None
    init = config["init"] | {"weights": os.fspath(folder)}
    return Predictor(with_tuples(config | {"model": model, "init": init}), folder)


def clip_differences(stored: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (field, stored value, value now) of the fields of `CLIP_FIELDS` that differ.

    Args:
        stored: the config in the `run.json` of a run.
        config: the config by which clips are cut now.
    """
    before, now = (with_default_sections(each)["data"] for each in (stored, config))
    return [
        (field, before[field], now[field]) for field in CLIP_FIELDS if field in before and now[field] != before[field]
    ]


class Predictor:
    """A trained model with its class names and its input pipeline.

    The model is compiled for two batch sizes: for one video (one per shard of the batch, on several devices), and for
    full batches of `eval.batch_size` videos. Each is compiled when it is first needed. Videos that do not fill a batch
    are computed one by one.

    Args:
        config: the config of the run. Its sections `data` and `eval` may differ from those of the run: `eval` sets the
            number of views and selects the checkpoint.
        workdir: the folder of the run. The data of the run need not exist. If the folder has no checkpoints and
            `init.weights` is set, the parameters are loaded from `init.weights`.
    Attributes:
        classes: the class names by label.
        data: the config section `data`.
        step: the step of the checkpoint, or 0 with `init.weights`.
        remarks: sentences on the weights of `init.weights`.
        make_model: function of `rngs` that builds the model.
        graph: the structure of the model for `nnx.merge`.
        parameters: the parameters as a tree of arrays: the EMA if there is one.
        scoring: how videos are labelled and scored, see `vidformers.training.scoring`.
    Raises:
        ConfigError: there is neither a checkpoint nor `init.weights`, or the parameters belong to another model.
    """

    def __init__(self, config: dict[str, Any], workdir: str | os.PathLike):
        from_weights = config["init"]["weights"] is not None and not (Path(workdir) / "checkpoints").is_dir()
        self._source = os.fspath(workdir)
        self.remarks: list[str] = []
        self._labels: str | None = None  # the field data.labels of the run
        self._clip_seconds: float | None = None
        if not from_weights:
            run = read_run_json(workdir)
            self.classes, self._labels = self._read_classes(run, workdir), run["config"]["data"].get("labels", ONE)
            self._clip_seconds = run["data"].get("median_seconds")
        self.protocol, self.data = EvalProtocol(**config["eval"]), config["data"]
        self.scoring = scoring_of(self._labels or self.data.get("labels", ONE), self.protocol.threshold)
        self._mesh = make_mesh(**config["mesh"])
        frames, context = self.protocol.frames or self.data["frames"], self._mesh.shape["context"]
        require(
            frames % context == 0,
            f"mesh.context={context} does not divide the {frames} frames of a clip. Change eval.frames, data.frames or "
            "mesh.context.",
        )
        self._small_batch = num_batch_shards(self._mesh)
        self._full_batch = -(-(self.protocol.batch_size or _BATCH_SIZE) // self._small_batch) * self._small_batch
        optimizer, _ = make_optimizer(1, 1, **config["optim"] | dict(warmup_steps=None, warmup_epochs=None))
        make_model = partial(build, **config["model"])
        if self.protocol.frames is not None:
            make_model = partial(make_model, frames=self.protocol.frames)
        self.make_model = make_model
        self.graph, abstract = abstract_state(make_model, optimizer, config["optim"]["ema_decay"], self._mesh)
        if from_weights:
            self.parameters = self._load_weights(config["init"], abstract)
        else:
            self.parameters = self._restore(config["checkpoint"], workdir, abstract)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.parameters)
        self._predict = prediction_step(self.graph, self._mesh, shardings, self.protocol, self.scoring)

    def __repr__(self) -> str:
        return f"<Predictor of {self._source}: step {self.step}, classes: {len(self.classes)}>"

    def _read_classes(self, run: dict[str, Any], workdir: str | os.PathLike) -> tuple[str, ...]:
        names = run["data"].get("classes")
        require(
            isinstance(names, list) and all(isinstance(name, str) for name in names),
            f"{workdir}/run.json is damaged: it lists no class names. Restore the file from a copy.",
        )
        return tuple(names)

    def _restore(self, section: dict[str, Any], workdir: str | os.PathLike, abstract):
        """Returns the parameters of a checkpoint and sets `step`."""
        require(
            (Path(workdir) / "checkpoints").is_dir(),
            f"{workdir} holds no checkpoints. Train the run first, or set --config.init.weights.",
        )
        best = CheckpointConfig(**section).best_metric(self._labels or ONE)
        with Checkpoints(Path(workdir), **section | {"best": best}, read_only=True) as checkpoints:
            restored = checkpoints.restore(abstract, self.protocol.checkpoint)
        require(restored is not None, f"{workdir} holds no complete checkpoint. Continue the run until it saves one.")
        state, _, self.step = restored
        return state.eval_parameters

    def _load_weights(self, section: dict[str, Any], abstract):
        """Returns the parameters of `init.weights`. Sets `step`, `remarks` and `classes`."""
        init = pretrained.Init(**section | {"head": "as_is"})
        weights = pretrained.load(init, self.make_model, file=open_run(str(init.weights)))
        weights.require_complete()
        self.remarks, self.step = weights.remarks, 0
        count = weights.values["head", "kernel"].shape[1]
        self.classes = tuple(weights.training_info["classes"] or map(str, range(count)))
        return weights.place_into(abstract.eval_parameters)

    @overload
    def predict(self, video: Video, top: int = _TOP) -> list[tuple[str, float]]: ...

    @overload
    def predict(self, video: list[Video] | tuple[Video, ...], top: int = _TOP) -> list[list[tuple[str, float]]]: ...

    def predict(self, video, top=_TOP):
        """Returns the names and probabilities of the `top` likeliest classes of a video, the likeliest first.

        Args:
            video: a path, or the frames of a video as an array (t y x 3), uint8 in red, green and blue. An array has
                `data.frame_rate` frames per second. A list of paths and arrays gives a list of results.
            top: number of classes.
        Raises:
            ConfigError: a video cannot be decoded, or an array does not hold frames. `predict_many` goes on after a
                video that cannot be decoded.
        """
        results = []
        for prediction in self.predict_many(video if isinstance(video, (list, tuple)) else [video]):
            if prediction.probabilities is None:
                raise ConfigError(prediction.error)
            results.append(self.best(prediction.probabilities, top))
        return results if isinstance(video, (list, tuple)) else results[0]

    def explain(self, video: Video, target: str | None = None) -> Explanation:
        """Returns the relevance of the patches and frames of a video for the class `target`, or the likeliest class.

        Raises:
            ConfigError: there is no such class, or the video cannot be decoded.
        """
        self.explainer.require_class(target)
        (clip,) = self.clips([video])
        require(not clip.error, clip.error)
        return self.explainer(clip, target)

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer(self.graph, self.parameters, self.classes, self.scoring)

    def best(self, probabilities: np.ndarray, top: int = _TOP) -> list[tuple[str, float]]:
        """Returns the names and probabilities of the `top` likeliest classes, the likeliest first."""
        labels = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.classes[label], float(probabilities[label])) for label in labels]

    def predicted(self, probabilities: np.ndarray) -> list[tuple[str, float]]:
        """Returns the names and probabilities of the classes that are predicted, the likeliest first.

        With several labels a video, they are those whose probability is above `eval.threshold`, and there may be none.
        With one label, it is the likeliest class.
        """
        return self.best(probabilities, self.scoring.count_predicted(probabilities))

    def predict_many(self, videos: Sequence[Video]) -> Iterator[Prediction]:
        """Yields a `Prediction` for each video, in order. `data.workers` processes decode the videos.

        If arrays are among the videos, this process decodes all of them, see `predict`.
        """
        if not len(videos):
            return
        records = video_records(videos)
        remarks = VideoRemarks(records)
        batch_size = self._full_batch if len(videos) >= self._full_batch else self._small_batch
        with self._batches(records, batch_size, self.protocol.clips, self.protocol.crops) as batches:
            for batch in map(remarks.log_local, batches):
                count = int((batch["id"] >= 0).sum())  # padding comes last
                if batch["mask"].any():
                    probabilities, features = self.compute(batch["video"][:count], batch["index"][:count])
                for row in range(count):
                    name, error = records[batch["id"][row]].name, decoding_error(batch, row)
                    if error:
                        yield Prediction(name, None, None, error)
                    else:
                        yield Prediction(name, probabilities[row], features[row], "")

    def compute(self, video: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the probabilities (b classes) and the features (b d) of videos, averaged over their views.

        Args:
            video: uint8 (b v t y x 3), the views of each video.
            index: (b v t), the frame indices.
        Raises:
            ConfigError: a batch does not fit in the memory of a device.
        """
        results, start = [], 0
        while start < len(video):
            size = self._full_batch if len(video) - start >= self._full_batch else self._small_batch
            rows = np.minimum(np.arange(start, start + size), len(video) - 1)  # repeats the last video if one is left
            inputs = put_batch(self._mesh, {"video": video[rows], "index": index[rows]})
            try:
                results.append(jax.device_get(self._predict(self.parameters, inputs)))
            except jax.errors.JaxRuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
                raise ConfigError(
                    f"A prediction with eval.batch_size={size} needs more memory than a device has. Lower "
                    "eval.batch_size, eval.views_at_once or eval.frames."
                ) from error
            start += size
        scores, features = (np.concatenate(arrays)[: len(video)] for arrays in zip(*results, strict=True))
        return self.scoring.probabilities(scores), features

    @property
    def batch_size(self) -> int:
        """Videos of a full batch."""
        return self._full_batch

    def timeline(
        self,
        video: Video,
        every: float = 1.0,
        *,
        window: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        threshold: float | None = None,
        shortest: float | None = None,
    ) -> Timeline:
        """Returns the predictions for a window every `every` seconds of a video, and the segments that they make.

        The video may have any length. It is decoded once, and the frames of one window are in memory.

        Args:
            video: a path, or the frames as in `predict`. Use the command for cameras and streams, which may not end.
            every: seconds from the start of a window to the start of the next.
            window: seconds of a window. None is that of the clips in training.
            start, end: seconds of the video between which the windows lie.
            threshold: the least probability of a class in a window. None is `eval.threshold` with several labels per
                clip, and 0.5 otherwise.
            shortest: seconds; shorter segments are left out. None is `every`.
        Raises:
            ConfigError: an argument is out of range, or the video cannot be decoded.
        """
        (record,) = video_records([video])
        require(not record.is_part, f"{video} is a part of a video. Give the video with start and end instead.")
        windows = model_windows(self, record, every, window, start, end)
        with closing(windows):
            require(not windows.is_live, f"{video} may not end. Read it with --mode=predict --video={video}.")
            segments, found = model_segments(self, every, threshold, shortest), []
            for prediction in windows.predictions(self.compute, self.batch_size):
                segments.add(prediction)
                found.append(prediction)
        require(bool(found), windows.nothing)
        return Timeline(found, segments.finish())

    def median_seconds(self) -> float | None:
        """Returns the median length of the training clips, or None if the training videos are not here."""
        return self._clip_seconds or median_seconds(Pipeline(**self.data))

    @property
    def sampling_rule(self) -> str:
        """The sentences that say which frames of a video the clips take, see `input_pipeline.sampling`."""
        return Pipeline(**self.data).test_sampler(self.protocol.frames).rule

    def clips(self, videos: Sequence[Video]) -> Iterator[Clip]:
        """Yields one `Clip` of each video, in order, scaled and cropped for the model: that of eval.clips=1."""
        records = video_records(videos)
        with self._batches(records, 1, 1, 1) as batches:
            for record, batch in zip(records, batches, strict=True):
                yield Clip(record.name, batch["video"][0, 0], batch["index"][0, 0], decoding_error(batch, 0))

    def _batches(self, records: tuple[Record, ...], batch_size: int, clips: int, crops: int):
        # One video is decoded in this process. Starting a worker takes longer, and a script that starts processes needs
        # an `if __name__ == "__main__"` guard. Arrays would be copied to every worker.
        in_process = len(records) == 1 or any(record.frames is not None for record in records)
        pipeline = Pipeline(**self.data | ({"workers": 0} if in_process else {}))
        return closing(
            pipeline.val_batches(
                batch_size=batch_size, clips=clips, crops=crops, frames=self.protocol.frames, records=records
            )
        )

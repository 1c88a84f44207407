"""Predictions of a trained run for video files: from Python, and as `--mode=predict`."""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from input_pipeline import Pipeline
from input_pipeline.annotations import Record
from input_pipeline.files import write_bytes
from input_pipeline.sources.files import is_video, read_lines
from vidformers import pretrained
from vidformers.errors import ConfigError, require
from vidformers.models.fuse import fuse_projections
from vidformers.models.registry import build
from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards, with_mesh
from vidformers.parallel.state import replicated_sharding
from vidformers.pretrained import native as own
from vidformers.progress import Bar, log, table
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, log_probabilities_and_features
from vidformers.training.optim import make_optimizer
from vidformers.training.setup import abstract_state

CLIP_FIELDS = ("sampling", "stride", "fps", "test_starts", "frame_rate", "size", "test_short_side")  # of `data`, a clip
_TOP = 5
_VIDEOS = 8  # at once, where the run does not say


class Prediction(NamedTuple):
    """What a model says of a video.

    Attributes:
        video: its path.
        probabilities: (classes), averaged over the views; None where the video will not decode.
        features: (d), what the head reads, averaged likewise.
        error: why it will not decode, or empty.
    """

    video: str
    probabilities: np.ndarray | None
    features: np.ndarray | None
    error: str


class Clip(NamedTuple):
    """Frames of a video: uint8 (t y x 3), their places in it (t), and why it will not decode, or empty."""

    video: str
    frames: np.ndarray
    index: np.ndarray
    error: str


def load(workdir) -> "Predictor":
    """The model of a run, as `load("runs/demo").predict("clip.mp4")`.

    Raises:
        ConfigError: the folder holds no run with a checkpoint, or one of another version.
    """
    config = read_run_json(workdir)["config"]
    for section in ("model", "data", "eval", "optim", "mesh", "checkpoint", "init"):
        require(section in config, f"{workdir}/run.json has no section {section!r}: another version wrote it.")
    config["model"] |= {"backend": "auto"}  # that of the machine that trained may not be here, nor its devices
    config["mesh"] = {}
    return Predictor(_with_tuples(config), workdir)


def _with_tuples(tree):
    """What JSON has made lists of, as a config has it."""
    if isinstance(tree, dict):
        return {name: _with_tuples(child) for name, child in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree


def read_run_json(workdir) -> dict:
    """What `run.json` says. Raises ConfigError where there is none."""
    path = Path(workdir) / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["data"]["classes"], run["config"]["model"], run["config"]["data"]  # a damaged file lacks some of them
        return run
    except OSError:
        raise ConfigError(f"{workdir} holds no run: there is no {path}.") from None
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{path} is damaged; it does not hold a run's description.") from None


class Predictor:
    """A trained model, its classes and its way to read videos. Compiled at the first prediction, once.

    Args:
        config: of the run; `eval` says how many views are taken, and which checkpoint.
        workdir: of the run, whose data need not be there; where it has no checkpoints, `init.weights` are taken.
    Attributes:
        classes: names by label.
        step: of the checkpoint.
        remarks: on what is otherwise than in training, a sentence each.
        make_model, graph: rngs -> the model, and its structure for `nnx.merge`.
        parameters: its tree of arrays, the moving average where there is one.
    Raises:
        ConfigError: there is no checkpoint nor weights, or they are of another model.
    """

    def __init__(self, config: dict, workdir):
        published = config["init"]["weights"] is not None and not (Path(workdir) / "checkpoints").is_dir()
        if not published:
            self._compare(read_run_json(workdir), config, workdir)
        self.protocol, self._data = EvalProtocol(**config["eval"]), config["data"]
        self._mesh = make_mesh(**config["mesh"])
        frames, context = self.protocol.frames or self._data["frames"], self._mesh.shape["context"]
        require(frames % context == 0, f"The {frames} frames of a clip must be divisible by mesh.context={context}.")
        # As many for each device.
        self._batch_size = -(-(self.protocol.batch_size or _VIDEOS) // num_batch_shards(self._mesh)) * num_batch_shards(
            self._mesh
        )
        optimizer, _ = make_optimizer(1, 1, **config["optim"] | dict(warmup_steps=None, warmup_epochs=None))
        make_model = partial(build, **config["model"])
        if self.protocol.frames is not None:
            make_model = partial(make_model, frames=self.protocol.frames)
        self.make_model = make_model
        graph, abstract = abstract_state(make_model, optimizer, config["optim"]["ema_decay"], self._mesh)
        self.graph, self.parameters = (
            graph,
            (
                self._published(config["init"], abstract)
                if published
                else self._trained(config["checkpoint"], workdir, abstract)
            ),
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.parameters)

        def answer(parameters, batch):
            return log_probabilities_and_features(
                fuse_projections(nnx.merge(graph, parameters)),
                batch["video"],
                batch["index"],
                self.protocol.average,
                self.protocol.views_at_once,
            )

        self._answer = jax.jit(
            with_mesh(self._mesh, answer), in_shardings=(shardings, None), out_shardings=replicated_sharding(self._mesh)
        )

    def _compare(self, run, config, workdir):
        """Takes the classes of a run and sees whether it is of this model."""
        for field, before, now in own.model_differences(run["config"]["model"], config["model"]):
            require(False, f"--workdir={workdir} holds a run with model.{field}={before!r}, not {now!r}.")
        self.remarks = [
            f"Clips are cut with data.{field}={config['data'][field]!r}, in training with {before!r}."
            for field, before in run["config"]["data"].items()
            if field in CLIP_FIELDS and json.loads(json.dumps(config["data"][field])) != before
        ]
        self.classes = tuple(run["data"]["classes"])

    def _trained(self, section, workdir, abstract):
        """The parameters of a checkpoint."""
        require((Path(workdir) / "checkpoints").is_dir(), f"{workdir} holds no checkpoints to predict with.")
        with Checkpoints(workdir, **section, read_only=True) as checkpoints:
            restored = checkpoints.restore(abstract, self.protocol.checkpoint)
        require(restored is not None, f"{workdir} holds no whole checkpoint to predict with.")
        state, _, self.step = restored
        return state.eval_parameters

    def _published(self, section, abstract):
        """The parameters of weights from elsewhere, with their own classes in their own order."""
        init = pretrained.Init(**section | {"head": "as_is"})
        found = pretrained.load(init, self.make_model)
        found.require_complete()
        self.remarks, self.step = found.remarks, 0
        count = found.values["head", "kernel"].shape[1]
        self.classes = tuple(found.inputs["classes"] or map(str, range(count)))
        return found.place_into(abstract.eval_parameters)

    def predict(self, video: str | os.PathLike, top: int = _TOP) -> list[tuple[str, float]]:
        """The names of the `top` likeliest classes of a video with their probabilities.

        Raises:
            ConfigError: the video will not decode; the sentence says why.
        """
        (found,) = self.each([video])
        require(not found.error, found.error)
        return self.best(found.probabilities, top)

    def explain(self, video: str | os.PathLike, target: str | None = None):
        """What the model looked at in a video, for the class `target` or the likeliest: an `explainer.Explanation`.

        Raises:
            ConfigError: the video will not decode, or there is no such class.
        """
        (found,) = self._explainer.each([video], target)
        require(not isinstance(found, Clip), getattr(found, "error", ""))
        return found

    @cached_property
    def _explainer(self):
        from vidformers.inference.explain.explainer import Explainer  # draws pictures, which predictions do without

        return Explainer(self)

    def best(self, probabilities, top: int = _TOP) -> list[tuple[str, float]]:
        """The names of the `top` likeliest classes with their probabilities, the likeliest first."""
        return [
            (self.classes[label], float(probabilities[label]))
            for label in np.argsort(-probabilities, kind="stable")[:top]
        ]

    def each(self, videos: Sequence) -> Iterator[Prediction]:
        """A `Prediction` of each video, in order, decoded by `data.workers` processes and computed in batches."""
        if not videos:
            return
        with self._batches(videos, self._batch_size, self.protocol.clips, self.protocol.crops) as batches:
            for batch in batches:
                rows = put_batch(self._mesh, {name: batch[name] for name in ("video", "index")})
                log_p, features = jax.device_get(self._answer(self.parameters, rows))
                for row in np.flatnonzero(batch["id"] >= 0):
                    path, error = os.fspath(videos[batch["id"][row]]), _error(batch, row)
                    yield (
                        Prediction(path, None, None, error)
                        if error
                        else Prediction(path, np.exp(log_p[row]), features[row], "")
                    )

    def clips(self, videos: Sequence) -> Iterator[Clip]:
        """The `Clip` in the middle of each video, in order, as the model sees it."""
        with self._batches(videos, 1, 1, 1) as batches:
            for video, batch in zip(videos, batches, strict=True):
                yield Clip(os.fspath(video), batch["video"][0, 0], batch["index"][0, 0], _error(batch, 0))

    def _batches(self, videos, batch_size, clips, crops):
        records = [Record(number, os.fspath(video), 0, 0) for number, video in enumerate(videos)]
        # One video is decoded here: starting a process takes longer, and asks scripts for their __main__ guard.
        pipeline = Pipeline(**self._data | {"workers": 0} if len(videos) == 1 else self._data)
        return closing(
            pipeline.val_batches(
                batch_size=batch_size, clips=clips, crops=crops, frames=self.protocol.frames, records=records
            )
        )


def _error(batch, row) -> str:
    return "" if batch["mask"][row] else batch["error"][row].decode("utf-8", "replace")


def load_for_command(config: dict, workdir) -> Predictor:
    """The `Predictor` of a command, which says its remarks."""
    predictor = Predictor(config, workdir)
    for remark in predictor.remarks:
        log(remark)
    return predictor


def find_videos(source: str) -> list[str]:
    """The videos that `--video` means: a file, all below a folder, or those of a list, a path a line.

    Raises:
        ConfigError: there are none.
    """
    if os.path.isdir(source):
        found = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(source)
            for name in names
            if is_video(name) and not name.startswith(".")
        )
    elif source.endswith((".txt", ".csv")):
        folder = os.path.dirname(source)
        found = [os.path.join(folder, line) for _, line in read_lines(source)]
    else:
        require(os.path.exists(source), f"--video={source} does not exist.")
        found = [source]
    require(bool(found), f"--video={source} holds no videos.")
    return found


def predict(config: dict, workdir, video: str, out: str | None = None, features: str | None = None) -> None:
    """`--mode=predict`: a table for a few videos, a row of JSON for each in `out`, what the head reads in `features`.

    A list that was stopped goes on after the rows that are in `out`, unless features are asked for, which need all.

    Raises:
        ConfigError: no checkpoint, no video, or an `out` of something else.
    """
    videos = find_videos(video)
    done = _done(out, videos) if out else 0
    if features:
        done = 0
    predictor = load_for_command(config, workdir)
    log(
        f"{workdir} at step {predictor.step}, {predictor.protocol.name} views: {len(videos) - done} videos"
        + (f", after the {done} that {out} holds already." if done else ".")
    )
    kept, bad, count, start = {}, 0, 0, time.perf_counter()
    file = open(out, "a" if done else "w", encoding="utf-8") if out else None
    try:
        with Bar("predict", len(videos), done) as bar:
            for count, found in enumerate(predictor.each(videos[done:]), start=1):
                bad += bool(found.error)
                best = None if found.error else predictor.best(found.probabilities)
                if file:
                    file.write(
                        json.dumps(
                            {"video": found.video, "error": found.error}
                            if found.error
                            else {"video": found.video, "top": [{"class": name, "probability": p} for name, p in best]}
                        )
                        + "\n"
                    )
                    file.flush()
                if found.error:
                    log(f"Left out, it will not decode: {found.error}")
                elif len(videos) <= 10:
                    table(found.video, [(name, f"{p:.1%}") for name, p in best])
                if features and not found.error:
                    kept[found.video] = found.features
                bar.advance()
    finally:
        if file:
            file.close()
    if features:
        save_features(features, kept)
    seconds = time.perf_counter() - start
    log(f"{count} videos in {seconds:.1f} s, {count / seconds:.1f} a second; {bad} would not decode.")


def save_features(path: str, kept: dict) -> None:
    """Writes an npz file of `video` (n) names and `features` (n d), whole or not at all."""
    content = io.BytesIO()
    np.savez(content, video=np.array(list(kept)), features=np.array(list(kept.values()), np.float32))
    write_bytes(Path(path), content.getvalue())


def _done(out, videos) -> int:
    """How many of the videos `out` holds, whose last line may be half written and is then taken off."""
    path = Path(out)
    if not path.exists():
        return 0
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = [json.loads(line)["video"] for line in whole.splitlines()]
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"--out={out} is there and holds something else than predictions.") from None
    require(rows == videos[: len(rows)], f"--out={out} holds predictions of other videos; give another file.")
    if whole != text:
        write_bytes(path, whole.encode())
    return len(rows)

"""The trainer: one straight loop over batches, and what surrounds it."""

import json
import signal
import time
from collections import deque
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np

from input_pipeline import DataError
from input_pipeline.files import write_text
from vidformers.errors import require
from vidformers.parallel import memory
from vidformers.parallel.batch import put_batch
from vidformers.parallel.processes import barrier
from vidformers.pretrained import Pretrained
from vidformers.progress import Bar, log, table
from vidformers.training import workdir as folders
from vidformers.training.bad_videos import BadVideos
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, EvalResult, Evaluator
from vidformers.training.metrics import MetricWriter, draw_confusion, draw_curves
from vidformers.training.setup import Setup, compile_within_memory, initialise, load_weights, set_up
from vidformers.training.step import State
from vidformers.training.tracing import Trace

_SLOW = 0.05  # share of the time spent waiting for data, above which a line says so


class StopSignal:
    """Turns the first SIGTERM or ctrl-C into a wish, so that the loop ends after a whole step; the second kills.

    `signal` is that of this process, if it got one; `agreed` says that all processes stop, at the same step.
    """

    def __enter__(self):
        self.signal, self.heard = None, False
        self.before = {number: signal.signal(number, self._wish) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _wish(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self.heard if jax.process_count() > 1 else self.signal is not None

    def attach_flag(self, batch: dict) -> dict:
        """The batch, which takes the wish of one of many processes to all."""
        if jax.process_count() == 1:
            return batch
        return batch | {"stop": np.full(len(batch["mask"]), self.signal is not None, np.float32)}

    def read_flag(self, figures: dict) -> None:
        self.heard = self.heard or figures.get("stop", 0) > 0


class Interrupted(Exception):
    """A run that was asked to stop, has saved, and can go on; `signal` says by what."""

    def __init__(self, sentence: str, number: int):
        super().__init__(sentence)
        self.signal = number


def train(config: dict, path) -> dict:
    """Trains as `config` says in the folder `path`, continuing what it holds; returns the last figures.

    Raises:
        ConfigError, DataError: a mistake, in one sentence.
        Interrupted: asked to stop; the state is saved.
    """
    begun = time.perf_counter()
    setup = set_up(config)
    workdir = folders.open_workdir(path)
    main = jax.process_index() == 0
    with ExitStack() as stack:
        if main:
            stack.enter_context(folders.lock(workdir))
        data = {"classes": list(setup.pipeline.class_names)}
        for split, manifest in (("train", setup.pipeline.train_manifest), ("val", setup.pipeline.val_manifest)):
            data |= {
                split: manifest.digest,
                f"{split}_list": manifest.path,
                f"{split}_videos": len(manifest.records),
                f"{split}_missing": list(manifest.missing),
                f"{split}_excluded": list(manifest.excluded),
            }
        run = folders.describe_run(config, data)
        changes = folders.compare_with_folder(workdir, run)
        checkpoints = stack.enter_context(Checkpoints(workdir, **config["checkpoint"]))
        restored = checkpoints.restore(setup.abstract)
        pretrained = None if restored else load_weights(setup)
        phases = {"set-up": time.perf_counter() - begun}
        return _train(setup, workdir, run, changes, checkpoints, restored, pretrained, phases, stack)


def _train(
    setup: Setup, workdir: Path, run: dict, changes, checkpoints: Checkpoints, restored, pretrained, phases, stack
) -> dict:
    """`train` in a folder that is ours; nothing is written there before all is known to fit."""
    main = jax.process_index() == 0

    def phase(name, since):
        phases[name] = phases.get(name, 0.0) + time.perf_counter() - since

    since = time.perf_counter()
    progress, start = {"bad_in_pass": 0, "bad": {}, "pending": []}, 0
    if restored:
        state, saved, start = restored
        progress |= saved
        require(
            start <= setup.total_steps,
            f"--workdir={workdir} holds step {start}, beyond the {setup.total_steps} "
            "steps of train.total_steps or total_epochs.",
        )
    trace = Trace(workdir / "profile", setup.train_config.profile_steps, setup.total_steps)
    compiled = batches = None
    if start < setup.total_steps:
        batches = stack.enter_context(
            closing(
                setup.pipeline.train_batches(  # whose workers start meanwhile
                    batch_size=setup.train_config.batch_size,
                    seed=setup.config["seed"],
                    start=start,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                )
            )
        )
        compiled = compile_within_memory(setup)
    if not restored:
        state = initialise(setup, pretrained)
    barrier()
    phase("compiling", since)
    if main:
        folders.write_run_json(workdir, run)
        if pretrained:
            write_text(workdir / "init.json", pretrained.report())
            print_report(pretrained)
        writer = stack.enter_context(closing(MetricWriter(workdir, start)))
    if restored and main:
        log(f"Continues {workdir} at step {start} of {setup.total_steps}.")
    if main:
        for change in changes:
            log(change)
        for sentence in data_notes(setup, workdir):
            log(sentence)
    evaluators = {}

    def evaluate(protocol: EvalProtocol, step: int) -> EvalResult:
        since = time.perf_counter()
        if protocol.name not in evaluators:
            evaluators[protocol.name] = setup.evaluator(protocol)
        result = run_evaluation(setup, evaluators[protocol.name], state.eval_parameters, protocol)
        if main:
            writer.write(step, result.metrics)
        phase("evaluating", since)
        return result

    def due(step: int) -> list[EvalProtocol]:
        """The evaluations after `step`. They come before its save: a run killed within one redoes it."""
        last = step == setup.total_steps
        quick = setup.eval_every and (last or step % setup.eval_every == 0)
        return list(dict.fromkeys([setup.quick_protocol] * bool(quick) + [setup.protocol] * last))

    bad = BadVideos(setup, progress)
    with StopSignal() as stop:

        def must_know(step: int) -> bool:
            """Whether the state after `step` may be saved, so that all losses up to it must be known to be finite."""
            return bool(stop.requested or step % checkpoints.every_steps == 0 or due(step))

        if start == setup.total_steps:
            final = evaluate(setup.protocol, start)
        since, before = time.perf_counter(), phases.get("evaluating", 0.0)
        trace = stack.enter_context(closing(trace))
        for step, state, logged, pending in steps(
            setup, compiled, state, batches, start, progress["pending"], bad, stop, must_know, trace
        ):
            if logged and main:
                writer.write(step, logged)
            results = [evaluate(protocol, step) for protocol in due(step)]
            asked = pending is not None and stop.requested
            if asked or results or step % checkpoints.every_steps == 0:
                figures = {name: value for result in results for name, value in result.metrics.items()}
                checkpoints.save(step, state, {**bad.progress, "pending": pending}, figures)
            if step == setup.total_steps:
                final = results[-1]
            elif asked:
                checkpoints.wait()
                raise Interrupted(
                    f"Stopped at step {step} of {setup.total_steps}, which is saved: the same command continues.",
                    stop.signal or signal.SIGTERM,
                )
        phase("training", since)
        phases["training"] -= phases["evaluating"] - before
        checkpoints.wait()
        if main:
            finish_run(setup, workdir, final, phases, start)
    return final.metrics


def print_report(pretrained: Pretrained) -> None:
    """What became of each parameter, as a table."""
    counts = ", ".join(f"{count} {how}" for how, count in pretrained.counts.items())
    table(
        f"{pretrained.file.path}, a {pretrained.layout}: {counts}",
        [(row.parameter, row.how, row.note) for row in pretrained.rows]
        + [(name, "unused", "") for name in pretrained.unused],
    )
    for remark in pretrained.remarks:
        log(remark)


def data_notes(setup: Setup, workdir: Path):
    """What a user should know of the data before figures come: videos that are not there, and what a batch holds."""
    for manifest in (setup.pipeline.train_manifest, setup.pipeline.val_manifest):
        if manifest.missing:
            yield (
                f"{len(manifest.missing)} of {len(manifest.missing) + len(manifest.records)} videos of "
                f"{manifest.path} are not there; {workdir}/run.json lists them."
            )
        if manifest.excluded:
            yield f"{len(manifest.excluded)} videos of {manifest.path} are left out, as data.exclude says."
    repeats, size = setup.pipeline.repeats, setup.train_config.batch_size
    if repeats > 1:
        yield (
            f"A batch of {size} clips holds {size // repeats} videos, {repeats} clips of each (data.repeats); a "
            "pass over the videos is as many times longer."
        )


def steps(
    setup: Setup,
    compiled,
    state: State,
    batches,
    start: int,
    pending: list,
    bad: BadVideos,
    stop: StopSignal,
    must_know,
    trace: Trace,
):
    """Yields (steps done, state, figures since the last log or None, pending) after each step.

    Figures are fetched late, so that the host runs ahead of the devices by two steps at most. `pending` holds those of
    the steps since the last log, for a checkpoint to keep, or is None while some are not fetched; where
    `must_know(steps done)` all are, and all were finite.

    Raises:
        ConfigError: a loss or a gradient that is not finite, naming its step.
    """
    loop = setup.train_config
    if start == setup.total_steps:
        return
    running, done, waited, since, logged_at = deque(), list(pending), 0.0, time.perf_counter(), start
    decoded = 0  # frames, by this process
    with Bar("train", setup.total_steps, start, shown=jax.process_index() == 0) as bar:
        for step in range(start + 1, setup.total_steps + 1):
            trace.before(step, state)
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            bad.note_bad_rows(batch)
            decoded += int(batch["decoded"].sum())
            state, figures = compiled(state, put_batch(setup.mesh, stop.attach_flag(batch)))
            running.append((step, figures))
            whole = step % loop.log_every_steps == 0 or step == setup.total_steps
            known = whole or must_know(step)
            while len(running) > (0 if known else 2):
                number, figures = running.popleft()
                done.append(_fetch(number, figures))
                bad.count_bad_rows(number, done[-1])
                stop.read_flag(done[-1])
            trace.after(step, state)
            bar.advance()
            logged = None
            if whole:
                seconds = time.perf_counter() - since
                logged = _log(done, loop.batch_size) | {
                    "train/clips_per_second": (step - logged_at) * loop.batch_size / seconds,
                    "train/frames_per_second": decoded * jax.process_count() / seconds,
                    "train/data_wait": waited / seconds,
                }
                top1 = f"top-1 {logged['train/top1']:.1%}  " if "train/top1" in logged else ""
                bar.status(
                    f"loss {logged['train/loss']:.3f}  {top1}"
                    f"{logged['train/clips_per_second']:.0f} clips/s  "
                    f"{logged['train/frames_per_second']:.0f} decoded frames/s  "
                    f"data wait {logged['train/data_wait']:.1%}"
                    + ("  (reading is slower than training)" if logged["train/data_wait"] > _SLOW else "")
                )
                done = []
            paused = time.perf_counter()
            yield step, state, logged, list(done) if known else None
            since += time.perf_counter() - paused  # evaluating and saving
            if whole:
                waited, decoded, since, logged_at = 0.0, 0, time.perf_counter(), step


def _fetch(step: int, figures: dict) -> dict:
    figures = {name: float(value) for name, value in figures.items()}
    for name in ("loss", "gradient_norm"):
        require(
            np.isfinite(figures[name]),
            f"The {name.replace('_', ' ')} is {figures[name]} at step {step}: lower optim.lr, set optim.clip_norm, "
            "or use model.dtype=float32; checkpoints of steps before are kept.",
        )
    return figures


def _log(done: list[dict], batch_size: int) -> dict:
    weights = np.array([figures["count"] for figures in done])
    logged = {
        f"train/{name}": float(np.average([f[name] for f in done], weights=weights if weights.any() else None))
        for name in ("loss", "top1")
        if name in done[-1]
    }
    return logged | {
        "train/gradient_norm": done[-1]["gradient_norm"],
        "train/lr": done[-1]["lr"],
        "train/bad_rows": len(done) * batch_size - float(weights.sum()),
    }


def run_evaluation(setup: Setup, evaluator: Evaluator, parameters, protocol: EvalProtocol) -> EvalResult:
    """Evaluates parameters on `data.val`. Raises DataError naming a video that will not decode."""
    records = setup.pipeline.val_manifest.records
    data = setup.config["data"]
    frames, size, workers = protocol.frames or data["frames"], data["size"], setup.pipeline.workers
    others = sum(memory.shard_bytes(leaf) for leaf in jax.tree.leaves(setup.abstract)) - sum(
        memory.shard_bytes(leaf) for leaf in jax.tree.leaves(setup.abstract.eval_parameters)
    )
    videos = evaluator.choose_batch_size(
        parameters, frames, size, others, setup.pipeline.max_batch_bytes, -(-len(records) // max(workers, 1))
    )
    batches = setup.pipeline.val_batches(
        batch_size=videos,
        clips=protocol.clips,
        crops=protocol.crops,
        frames=protocol.frames,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def bad_video(row: int, error: str) -> DataError:
        return DataError(
            f"{records[row].path} of data.val will not decode: {error}; eval.on_bad=skip leaves such videos out."
        )

    try:
        with Bar(f"eval {protocol.name}", len(records), shown=jax.process_index() == 0) as bar:
            result = evaluator(parameters, batches, bad_video, bar.advance)
            bar.status(f"top-1 {result.metrics[f'val/top1@{protocol.name}']:.2%}")
    finally:
        batches.close()
    if jax.process_index() == 0:
        for row, error in result.skipped:
            log(f"Left out, it will not decode: {records[row].path}: {error}")
    return result


def evaluate(config: dict, path) -> dict:
    """`--mode=eval`: evaluates a checkpoint of the folder `path` and draws its confusion matrix.

    Where the folder holds none, `init.weights` are evaluated as they are.
    """
    setup = set_up(config, training=False)
    workdir = Path(path)
    if setup.init.weights is not None and not (workdir / "checkpoints").is_dir():
        state, step = _published(setup, folders.open_workdir(workdir)), 0
    else:
        require((workdir / "checkpoints").is_dir(), f"--workdir={workdir} holds no checkpoints to evaluate.")
        with Checkpoints(workdir, **config["checkpoint"], read_only=True) as checkpoints:
            restored = checkpoints.restore(setup.abstract, setup.protocol.checkpoint)
        require(restored is not None, f"--workdir={workdir} holds no whole checkpoint to evaluate.")
        state, _, step = restored
    result = run_evaluation(setup, setup.evaluator(setup.protocol), state.eval_parameters, setup.protocol)
    if jax.process_index() == 0:
        write_text(workdir / f"eval_{setup.protocol.name}.json", _as_json(step, result))
        _confusion(setup, workdir, result)
        table(f"{workdir} at step {step}", _rows(result))
    return result.metrics


def _published(setup: Setup, workdir: Path) -> State:
    """The state of weights from elsewhere, which must be those of the whole model."""
    pretrained = load_weights(setup)
    pretrained.require_complete()
    if jax.process_index() == 0:
        write_text(workdir / "init.json", pretrained.report())
        print_report(pretrained)
    return initialise(setup, pretrained)


def finish_run(setup: Setup, workdir: Path, result: EvalResult, phases: dict, start: int) -> None:
    """The pictures and the closing table."""
    since = time.perf_counter()
    draw_curves(workdir)
    _confusion(setup, workdir, result)
    phases["drawing"] = time.perf_counter() - since
    rows = _rows(result)
    clips = (setup.total_steps - start) * setup.train_config.batch_size
    if clips and "training" in phases:
        rows += [("clips/s in training", f"{clips / phases['training']:.0f}")]
    rows += [(name, f"{seconds:.1f} s") for name, seconds in phases.items()]
    table(str(workdir), rows)


def _rows(result: EvalResult) -> list[tuple[str, str]]:
    percent = ("top1", "top5", "mean_class_top1")
    return [
        (name, f"{value:.2%}" if name.split("/")[1].split("@")[0] in percent else f"{value:g}")
        for name, value in result.metrics.items()
    ]


def _as_json(step: int, result: EvalResult) -> str:
    return (
        json.dumps({"step": step, **result.metrics, "skipped": result.skipped, "confusion": result.confusion.tolist()})
        + "\n"
    )


def _confusion(setup: Setup, workdir: Path, result: EvalResult) -> None:
    names = setup.pipeline.class_names
    top1 = result.metrics[f"val/top1@{setup.protocol.name}"]
    draw_confusion(workdir, result.confusion, names, f"top-1 {top1:.1%} ({setup.protocol.name} views)")

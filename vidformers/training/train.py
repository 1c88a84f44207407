"""The trainer: `train` prepares a run in its folder, and `training_loop` runs the steps."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from input_pipeline.files import write_text
from vidformers.errors import require
from vidformers.parallel.batch import put_batch
from vidformers.parallel.processes import barrier
from vidformers.pretrained import Pretrained
from vidformers.progress import Bar, log
from vidformers.training import workdir as folders
from vidformers.training.bad_videos import BadVideos
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.evaluate import EvalProtocol, EvalResult, Evaluator
from vidformers.training.deferred_metrics import LateMetrics
from vidformers.training.metrics import MetricWriter
from vidformers.training.reports import data_notes, draw_run, print_report, print_summary, status_line
from vidformers.training.setup import Setup, compile_within_memory, initialise, load_weights, set_up
from vidformers.training.step import State
from vidformers.training.stopping import Interrupted, StopSignal
from vidformers.training.timing import PhaseTimer, Throughput
from vidformers.training.tracing import Trace
from vidformers.training.validation import run_evaluation


def train(config: dict, path) -> dict:
    """Trains in the folder `path`, or continues the run that the folder holds.

    Nothing is written to the folder before the step is compiled and fits in memory.

    Args:
        config: the config as nested dicts.
        path: the workdir.

    Returns:
        The metrics of the last evaluation.

    Raises:
        ConfigError, DataError: a field or a file that cannot work.
        Interrupted: a signal stopped the run. The state is saved.
    """
    main, phases = jax.process_index() == 0, PhaseTimer()
    with ExitStack() as stack:
        with phases.measure("set-up"):
            setup, workdir = set_up(config), folders.open_workdir(path)
            if main:
                stack.enter_context(folders.lock(workdir))
            description = folders.describe_run(config, _describe_data(setup))
            changes = folders.compare_with_folder(workdir, description)
            checkpoints = stack.enter_context(Checkpoints(workdir, **config["checkpoint"]))
            restored = checkpoints.restore(setup.abstract)
            pretrained = None if restored else load_weights(setup)
        with phases.measure("compiling"):
            state, progress, start = restored or (None, {}, 0)
            trace = _check_steps(setup, workdir, start)
            batches = train_step = None
            if start < setup.total_steps:
                # The workers start here, so that they decode the first batches while the step is compiled.
                batches = stack.enter_context(closing(_train_batches(setup, start)))
                train_step = compile_within_memory(setup)
            if not restored:
                state = initialise(setup, pretrained)
            barrier()
        writer = None
        if main:
            _write_beginning(workdir, description, pretrained)
            writer = stack.enter_context(closing(MetricWriter(workdir, start)))
            _log_beginning(setup, workdir, start if restored else None, changes)
        progress = {"bad_in_pass": 0, "bad": {}, "pending": []} | progress
        bad_videos = BadVideos(setup, progress)
        with StopSignal() as stop:
            stack.enter_context(closing(trace))
            run = TrainingRun(setup, checkpoints, batches, train_step, writer, stop, trace, bad_videos, phases)
            with phases.measure("training"):
                result = training_loop(run, state, start, progress["pending"])
            checkpoints.wait()
            if main:
                with phases.measure("drawing"):
                    draw_run(setup, workdir, result)
                print_summary(setup, workdir, result, phases.seconds, setup.total_steps - start)
    return result.metrics


@dataclass
class TrainingRun:
    """What the training loop works with.

    Args:
        batches, train_step: the batches and the compiled step, or None if the run has no steps left.
        writer: of the first process; None in the others.
    """

    setup: Setup
    checkpoints: Checkpoints
    batches: Iterator[dict] | None
    train_step: Any
    writer: MetricWriter | None
    stop: StopSignal
    trace: Trace
    bad_videos: BadVideos
    phases: PhaseTimer
    evaluators: dict[str, Evaluator] = field(default_factory=dict)  # by the name of the protocol

    def write_metrics(self, step: int, metrics: dict) -> None:
        if self.writer is not None:
            self.writer.write(step, metrics)

    def due_protocols(self, step: int) -> list[EvalProtocol]:
        """Returns the protocols of the evaluations that are due after `step`."""
        setup = self.setup
        last = step == setup.total_steps
        quick = setup.eval_every and (last or step % setup.eval_every == 0)
        return list(dict.fromkeys([setup.quick_protocol] * bool(quick) + [setup.protocol] * last))

    def evaluate(self, step: int, state: State, protocols: Sequence[EvalProtocol]) -> list[EvalResult]:
        """Evaluates the state after `step` by each protocol, and writes the metrics."""
        results = []
        for protocol in protocols:
            with self.phases.measure("evaluating"):
                if protocol.name not in self.evaluators:
                    self.evaluators[protocol.name] = self.setup.evaluator(protocol)
                evaluator = self.evaluators[protocol.name]
                results.append(run_evaluation(self.setup, evaluator, state.eval_parameters, protocol))
                self.write_metrics(step, results[-1].metrics)
        return results

    def save(self, step: int, state: State, pending: list[dict], results: Sequence[EvalResult]) -> None:
        """Starts saving a checkpoint; it is scored by the metrics of the evaluations."""
        scores = {name: value for result in results for name, value in result.metrics.items()}
        self.checkpoints.save(step, state, {**self.bad_videos.progress, "pending": pending}, scores)


def training_loop(run: TrainingRun, state: State, start: int, pending: list[dict]) -> EvalResult:
    """Runs the steps from `start` + 1 to the last, and returns the result of the last evaluation.

    A run that was stopped or killed at any moment continues bit for bit as if it had not been. This rests on:

    - Step n uses batch n. The position in the data is the number of batches used, so the step alone determines it.
    - Before a save, the metrics of all steps are fetched and checked to be finite. Those since the last log line
      (`pending`) are saved with the state, and the next log line averages over them.
    - The evaluation of a step comes before its save, so a run killed during an evaluation evaluates again.

    Raises:
        ConfigError: the loss or the gradient of a step is not finite.
        DataError: too many videos cannot be decoded.
        Interrupted: a signal stopped the run. The state is saved.
    """
    setup, checkpoints, stop, config = run.setup, run.checkpoints, run.stop, run.setup.train_config
    if start == setup.total_steps:
        return run.evaluate(start, state, [setup.protocol])[-1]
    late_metrics, throughput = LateMetrics(pending), Throughput(config.batch_size)
    with Bar("train", setup.total_steps, start, shown=jax.process_index() == 0) as bar:
        for step in range(start + 1, setup.total_steps + 1):
            run.trace.before(step, state)
            batch = throughput.next_batch(run.batches)
            run.bad_videos.note_bad_rows(batch)
            state, metrics = run.train_step(state, put_batch(setup.mesh, stop.attach_flag(batch)))
            late_metrics.add(step, metrics)
            last, protocols = step == setup.total_steps, run.due_protocols(step)
            logs = last or step % config.log_every_steps == 0
            saves = bool(protocols) or step % checkpoints.every_steps == 0
            sync = logs or saves or stop.requested
            for fetched_step, fetched in late_metrics.fetch(sync):
                run.bad_videos.count_bad_rows(fetched_step, fetched)
                stop.read_flag(fetched)
            run.trace.after(step, state)
            bar.advance()
            if logs:
                logged = late_metrics.pop_averages(config.batch_size) | throughput.pop_rates()
                bar.status(status_line(logged))
                run.write_metrics(step, logged)
            with throughput.paused():
                results = run.evaluate(step, state, protocols)
                stops = sync and stop.requested  # requested before or during the evaluation
                if saves or stops:
                    run.save(step, state, late_metrics.pending, results)
            if stops and not last:
                checkpoints.wait()
                raise Interrupted(
                    f"Stopped at step {step} of {setup.total_steps}, which is saved: the same command continues.",
                    stop.signal or signal.SIGTERM,
                )
    return results[-1]


def _describe_data(setup: Setup) -> dict:
    """Returns the part `data` of run.json."""
    description: dict[str, Any] = {"classes": list(setup.pipeline.class_names)}
    for split, manifest in (("train", setup.pipeline.train_manifest), ("val", setup.pipeline.val_manifest)):
        description |= {
            split: manifest.digest,
            f"{split}_list": manifest.path,
            f"{split}_videos": len(manifest.records),
            f"{split}_missing": list(manifest.missing),
            f"{split}_excluded": list(manifest.excluded),
        }
    return description


def _check_steps(setup: Setup, workdir: Path, start: int) -> Trace:
    """Returns the trace of the run. Refuses a checkpoint beyond the last step, and steps to trace that do not exist."""
    require(
        start <= setup.total_steps,
        f"--workdir={workdir} holds step {start}, beyond the {setup.total_steps} steps of train.total_steps or "
        "train.total_epochs. Raise these, or give another workdir.",
    )
    return Trace(workdir / "profile", setup.train_config.profile_steps, setup.total_steps)


def _train_batches(setup: Setup, start: int):
    return setup.pipeline.train_batches(
        batch_size=setup.train_config.batch_size,
        seed=setup.config["seed"],
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _write_beginning(workdir: Path, description: dict, pretrained: Pretrained | None) -> None:
    """Writes `run.json`, and `init.json` if the run starts from pretrained weights."""
    folders.write_run_json(workdir, description)
    if pretrained:
        write_text(workdir / "init.json", pretrained.report())
        print_report(pretrained)


def _log_beginning(setup: Setup, workdir: Path, resumed_at: int | None, changes: list[str]) -> None:
    if resumed_at is not None:
        log(f"Continues {workdir} at step {resumed_at} of {setup.total_steps}.")
    for sentence in [*changes, *data_notes(setup, workdir)]:
        log(sentence)

"""The trainer: `train` prepares a run in its workdir, and `training_loop` runs the steps."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from input_pipeline.files import write_text
from vidformers.attention.fused import record_backends
from vidformers.errors import require
from vidformers.parallel.batch import put_batch
from vidformers.parallel.processes import barrier
from vidformers.parallel.state import convert_layers
from vidformers.pretrained import Pretrained
from vidformers.progress import Bar, log
from vidformers.training.bad_videos import BadVideos
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.deferred_metrics import DeferredMetrics
from vidformers.training.evaluate import EvalProtocol, EvalResult, Evaluator
from vidformers.training.metrics import MetricWriter
from vidformers.training.reports import data_notes, draw_run, print_report, print_summary, status_line
from vidformers.training.setup import Setup, compile_within_memory, initialise, load_weights, set_up
from vidformers.training.step import State
from vidformers.training.stopping import Interrupted, StopSignal
from vidformers.training.timing import PhaseTimer, Throughput, peak_seconds_per_clip
from vidformers.training.tracing import Trace
from vidformers.training.validation import run_evaluation
from vidformers.training.workdir import describe_run, differences_from_stored_run, lock, open_workdir, write_run_json


def train(config: dict, path) -> dict:
    """Trains in the workdir `path`, or continues the run in it.

    No files of the run (run.json, metrics, checkpoints) are written before the step is compiled and fits in memory.

    Args:
        config: the config as nested dicts.
        path: the workdir.
    Returns:
        The metrics of the last evaluation.
    Raises:
        ConfigError, DataError: an invalid config field or data file.
        Interrupted: a signal stopped the run. The state is saved.
    """
    main, phases = jax.process_index() == 0, PhaseTimer()
    with ExitStack() as stack:
        with phases.measure("set-up"):
            setup, workdir = set_up(config), open_workdir(path)
            if main:
                stack.enter_context(lock(workdir))
            backends = stack.enter_context(record_backends())
            description = describe_run(setup.config, _describe_data(setup), backends, setup.total_steps)
            changes = differences_from_stored_run(workdir, description)
            checkpoints = stack.enter_context(Checkpoints(workdir, **config["checkpoint"]))
            restored = checkpoints.restore(setup.abstract)
            pretrained = None if restored else load_weights(setup)
        with phases.measure("compiling"):
            state, host_state, start = restored or (None, {}, 0)
            _check_start(setup, workdir, start)
            trace = stack.enter_context(closing(_trace(setup, workdir)))
            batches = train_step = None
            if start < setup.total_steps:
                # The workers start here, so that they decode the first batches while the step is compiled.
                batches = stack.enter_context(closing(_train_batches(setup, start)))
                train_step = compile_within_memory(setup)
            if not restored:  # after compilation, so that a step that does not fit is refused before any allocation
                state = initialise(setup, pretrained)
            state = convert_layers(state, setup.step_abstract)
            barrier()  # processes compile at different speeds, and the first collective follows
        writer = None
        if main:
            _write_run_files(workdir, description, pretrained)
            writer = stack.enter_context(closing(MetricWriter(workdir, start)))
            _log_start(setup, workdir, start if restored else None, changes)
        # `host_state` is empty in a new run, and lacks some keys in checkpoints of older versions.
        bad_videos = BadVideos(setup, host_state.get("bad", {}), host_state.get("bad_in_pass", 0))
        with StopSignal() as stop:
            run = TrainingRun(
                setup, checkpoints, batches, train_step, writer, stop, trace, bad_videos, phases,
                _throughput(setup),
            )  # fmt: skip
            with phases.measure("training"):
                result = training_loop(run, state, start, host_state.get("pending", []))
            checkpoints.wait()
            if main:
                with phases.measure("drawing"):
                    draw_run(setup, workdir, result)
                print_summary(setup, workdir, result, phases.seconds, setup.total_steps - start)
    return result.metrics


@dataclass
class TrainingRun:
    """The components of a run that the training loop uses.

    Args:
        batches, train_step: the batches and the compiled step, or None if the run has no steps left.
        writer: the writer of metrics in process 0, None in all other processes.
        evaluators: the evaluators that have been used, by the name of the protocol.
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
    throughput: Throughput
    evaluators: dict[str, Evaluator] = field(default_factory=dict)

    def write_metrics(self, step: int, metrics: dict) -> None:
        if self.writer is not None:
            self.writer.write(step, metrics)

    def due_protocols(self, step: int) -> list[EvalProtocol]:
        """Returns the protocols to evaluate after `step`. After the last step, the list ends with `setup.protocol`."""
        setup, protocols = self.setup, []
        is_last = step == setup.total_steps
        if setup.eval_every and (is_last or step % setup.eval_every == 0):
            protocols.append(setup.periodic_protocol)
        if is_last:
            protocols.append(setup.protocol)
        return list(dict.fromkeys(protocols))  # the two protocols may be equal

    def evaluate(self, step: int, state: State, protocols: Sequence[EvalProtocol]) -> list[EvalResult]:
        """Evaluates the state after `step` by each protocol, and writes the metrics. Returns the results in order."""
        results: list[EvalResult] = []
        if not protocols:
            return results
        parameters = convert_layers(state.eval_parameters, self.setup.abstract.eval_parameters)
        for protocol in protocols:
            with self.phases.measure("evaluating"):
                # The name identifies the protocol: the two protocols of a run differ at most in clips and crops.
                if protocol.name not in self.evaluators:
                    self.evaluators[protocol.name] = self.setup.evaluator(protocol)
                evaluator = self.evaluators[protocol.name]
                results.append(run_evaluation(self.setup, evaluator, parameters, protocol))
                self.write_metrics(step, results[-1].metrics)
        return results

    def save(self, step: int, state: State, unlogged: list[dict], results: Sequence[EvalResult]) -> None:
        """Starts saving a checkpoint. The metrics of the evaluations decide which checkpoint is kept as the best.

        Besides the arrays, a checkpoint holds the host state. Its keys are names of the stored format:

        - `bad_in_pass`, an int: the videos of the current epoch that could not be decoded, over all processes.
        - `bad`, {path: int}: for each video that process 0 could not decode, how many clips of it were left out. Only
          process 0 writes the host state, so the paths in other processes are not stored.
        - `pending`, a list of dicts: the metrics of the steps since the last log line.
        """
        host_state = {
            "bad_in_pass": self.bad_videos.count_in_pass,
            "bad": self.bad_videos.clips_by_path,
            "pending": unlogged,
        }
        metrics = {name: value for result in results for name, value in result.metrics.items()}
        self.checkpoints.save(step, convert_layers(state, self.setup.abstract), host_state)
        if metrics:
            self.checkpoints.add_metrics(step, metrics)


def training_loop(run: TrainingRun, state: State, start: int, unlogged: list[dict]) -> EvalResult:
    """Runs the steps from `start` + 1 to the last, and returns the result of the last evaluation.

    A run that was stopped or killed at any moment gives, when continued, results that are bit-identical to those of an
    uninterrupted run. This works because:

    - Step n uses batch n. The data iterator has no other state than the step.
    - Before a save, the metrics of all steps are fetched and checked to be finite. The metrics since the last log line
      (`unlogged`) are saved with the state, and the next log line averages over them.
    - The evaluation of a step comes before its save, so a run killed during an evaluation evaluates again.

    Args:
        state, start: the state after step `start`, and the number of finished steps.
        unlogged: the metrics of the steps up to `start` that no log line has averaged.
    Raises:
        ConfigError: the loss or the gradient of a step is not finite.
        DataError: too many videos cannot be decoded.
        Interrupted: a signal stopped the run. The state is saved.
    """
    setup, checkpoints, stop, throughput = run.setup, run.checkpoints, run.stop, run.throughput
    config, deferred_metrics = setup.train_config, DeferredMetrics(unlogged)
    if start == setup.total_steps:
        return run.evaluate(start, state, [setup.protocol])[-1]
    with Bar("train", setup.total_steps, start, shown=jax.process_index() == 0) as bar:
        for step in range(start + 1, setup.total_steps + 1):
            run.trace.before(step, state)
            batch = throughput.next_batch(run.batches)
            run.bad_videos.log_local(step, batch)
            # The stop request travels with the batch, so that all processes stop at the same step.
            state, metrics = run.train_step(state, put_batch(setup.mesh, stop.attach_flag(batch)))
            deferred_metrics.add(step, metrics)
            is_last, protocols = step == setup.total_steps, run.due_protocols(step)
            should_log = is_last or step % config.log_every_steps == 0
            # Always save after an evaluation, because its metrics decide whether this checkpoint is the best.
            should_save = bool(protocols) or step % checkpoints.every_steps == 0
            fetch_all = should_log or should_save or stop.agreed
            for fetched_step, fetched in deferred_metrics.fetch(fetch_all):
                run.bad_videos.count_global(fetched_step, fetched)
                stop.read_flag(fetched)
            run.trace.after(step, state)
            bar.advance()
            if should_log:
                averages = deferred_metrics.pop_averages(config.batch_size) | throughput.pop_rates()
                bar.status(status_line(averages))
                run.write_metrics(step, averages)
            with throughput.paused():
                results = run.evaluate(step, state, protocols)
                # If `stop.agreed` became True only after `fetch_all` was computed, some metrics may still be unfetched.
                # Then the state cannot be saved, and the run stops at the next step. `stop.agreed` is equal in all
                # processes, since they have fetched the same metrics.
                should_stop = fetch_all and stop.agreed
                if should_save or should_stop:
                    run.save(step, state, deferred_metrics.unlogged, results)
            if should_stop and not is_last:
                checkpoints.wait()
                raise Interrupted(
                    f"Stopped at step {step} of {setup.total_steps}, which is saved: the same command continues.",
                    stop.signal or signal.SIGTERM,  # None if only another process got a signal
                )
    return results[-1]  # of `setup.protocol`, the last of the protocols that are due after the last step


def _describe_data(setup: Setup) -> dict:
    """Returns the entry `data` of run.json."""
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


def _check_start(setup: Setup, workdir: Path, start: int) -> None:
    """Raises ConfigError if the checkpoint is beyond the last step."""
    require(
        start <= setup.total_steps,
        f"--workdir={workdir} holds step {start}, beyond the {setup.total_steps} steps of train.total_steps or "
        "train.total_epochs. Raise these, or give another workdir.",
    )


def _train_batches(setup: Setup, start: int):
    return setup.pipeline.train_batches(
        batch_size=setup.train_config.batch_size,
        seed=setup.config["seed"],
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _trace(setup: Setup, workdir: Path) -> Trace:
    return Trace(workdir / "profile", setup.train_config.profile_steps, setup.total_steps)


def _throughput(setup: Setup) -> Throughput:
    config = setup.train_config
    peak_seconds = peak_seconds_per_clip(setup.make_model, setup.mesh, config.peak_tflops)
    return Throughput(config.batch_size, peak_seconds)


def _write_run_files(workdir: Path, description: dict, pretrained: Pretrained | None) -> None:
    """Writes `run.json`, and `init.json` if the run starts from pretrained weights."""
    write_run_json(workdir, description)
    if pretrained:
        write_text(workdir / "init.json", pretrained.report())
        print_report(pretrained)


def _log_start(setup: Setup, workdir: Path, resumed_at: int | None, changes: list[str]) -> None:
    if resumed_at is not None:
        log(f"Continues {workdir} at step {resumed_at} of {setup.total_steps}.")
    for sentence in [*changes, *data_notes(setup, workdir)]:
        log(sentence)

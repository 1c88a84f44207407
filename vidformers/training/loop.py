"""The training loop: steps, evaluations and checkpoints, and what happens when a run is stopped or fails."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import jax

from input_pipeline import DataError
from vidformers.parallel.batch import put_batch
from vidformers.parallel.state import convert_layers
from vidformers.progress import Bar, log
from vidformers.training.bad_videos import BadVideos
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.deferred_metrics import DeferredMetrics, NotFiniteError
from vidformers.training.evaluate import EvalProtocol, EvalResult
from vidformers.training.metrics import MetricWriter
from vidformers.training.patience import Patience
from vidformers.training.reports import status_line
from vidformers.training.setup import Setup
from vidformers.training.step import State
from vidformers.training.stopping import Interrupted, StopSignal
from vidformers.training.timing import PhaseTimer, Throughput
from vidformers.training.tracing import Trace
from vidformers.training.validation import Validation


class TrainingRun:
    """A run between two steps, and the components that the training loop uses.

    Attributes:
        state, step: the state after `step` finished steps.
        due: the protocols by which `state` is yet to be evaluated, in order.
        saved_step: the step of the last save, which may have failed; or the step at which this process has started.

    Args:
        setup, checkpoints, trace, phases, throughput, patience: components.
        workdir: the folder of the run.
        writer: the writer of metrics in process 0, None in all other processes.
        stop: the stop signal.
        state, host_state, step: from the restored checkpoint. In a new run, `host_state` is empty and `step` 0.
    """

    def __init__(
        self,
        setup: Setup,
        workdir: Path,
        checkpoints: Checkpoints,
        writer: MetricWriter | None,
        stop: StopSignal,
        trace: Trace,
        phases: PhaseTimer,
        throughput: Throughput,
        patience: Patience,
        *,
        state: State,
        host_state: dict,
        step: int,
    ):
        self.setup, self.workdir, self.checkpoints = setup, workdir, checkpoints
        self.writer, self.stop = writer, stop
        self.trace, self.phases, self.throughput = trace, phases, throughput
        self.state, self.step, self.saved_step = state, step, step
        # Checkpoints of older versions lack some keys.
        self.bad_videos = BadVideos(setup, host_state.get("bad", {}), host_state.get("bad_in_pass", 0))
        self.deferred_metrics = DeferredMetrics(host_state.get("pending", []))
        self.patience = patience
        self.due = self._restore_due(host_state.get("due", []))
        self._validations: dict[str, Validation] = {}

    def _restore_due(self, names: list[str]) -> list[EvalProtocol]:
        """Returns the evaluations that the restored run had not finished. A finished run is evaluated once more."""
        setup = self.setup
        done = self.checkpoints.read_metrics(self.step) if names else {}
        due = [
            protocol
            for protocol in dict.fromkeys((setup.periodic_protocol, setup.protocol))
            if protocol.name in names and f"val/loss@{protocol.name}" not in done
        ]
        if self.is_finished and setup.protocol not in due:
            due.append(setup.protocol)
        return due

    @property
    def is_finished(self) -> bool:
        """Whether no step is left: after the last step, or when `patience` is over."""
        return self.step == self.setup.total_steps or self.patience.is_over

    def advance(self, train_step, batches: Iterator[dict]) -> None:
        """Runs one step."""
        self.trace.before(self.step + 1, self.state)
        batch = self.throughput.next_batch(batches)
        # The stop request travels with the batch, so that all processes stop at the same step.
        on_devices = put_batch(self.setup.mesh, self.stop.attach_flag(batch))
        self.state, metrics = train_step(self.state, on_devices)
        self.step += 1
        self.due = self._protocols_after(self.step)
        self.deferred_metrics.add(self.step, metrics)
        self.bad_videos.log_local(self.step, batch)

    def _protocols_after(self, step: int) -> list[EvalProtocol]:
        """Returns the protocols to evaluate after `step`. After the last step, the list ends with `setup.protocol`."""
        setup, protocols = self.setup, []
        is_last = step == setup.total_steps
        if setup.eval_every and (is_last or step % setup.eval_every == 0):
            protocols.append(setup.periodic_protocol)
        if is_last:
            protocols.append(setup.protocol)
        return list(dict.fromkeys(protocols))  # the two protocols may be equal

    def _evaluations_left(self, protocol: EvalProtocol) -> int:
        """Returns how many evaluations by a protocol that is due are left, this one included."""
        setup = self.setup
        if self.is_finished:
            return 1
        if setup.eval_every and protocol == setup.periodic_protocol:
            later = setup.total_steps // setup.eval_every - self.step // setup.eval_every
            return 1 + later + (setup.total_steps % setup.eval_every > 0)
        return 1 + (protocol == setup.protocol)

    def fetch_metrics(self, fetch_all: bool) -> None:
        """Fetches the metrics of finished steps, and reads from them the bad videos and the stop request.

        Raises:
            NotFiniteError: the loss or the gradient of a step is not finite.
            DataError: too many videos cannot be decoded.
        """
        for step, metrics in self.deferred_metrics.fetch(fetch_all):
            self.stop.read_flag(metrics.get("stop", 0.0))
            self.bad_videos.count_global(step, metrics)

    @property
    def should_log(self) -> bool:
        return self.is_finished or self.step % self.setup.train_config.log_every_steps == 0

    def log(self) -> dict:
        """Writes the log line of `step` to `metrics.jsonl`, and returns its metrics. All metrics must be fetched."""
        averages = self.deferred_metrics.averages(self.setup.train_config.batch_size)
        averages |= self.throughput.pop_rates()
        self._write_metrics(averages)
        self.deferred_metrics.start_next_line()  # a checkpoint stores the metrics of a row that could not be written
        return averages

    def _write_metrics(self, metrics: dict) -> None:
        if self.writer is not None:
            self.writer.write(self.step, metrics)

    def evaluate_due(self) -> EvalResult | None:
        """Evaluates `state` by the protocols in `due`, and writes the metrics to `metrics.jsonl` and the checkpoint.

        Returns:
            The last result, None if nothing was due.
        Raises:
            Interrupted: a signal stopped an evaluation. The restored run repeats it.
        """
        result = None
        if not self.due:
            return result
        parameters = convert_layers(self.state.eval_parameters, self.setup.abstract.eval_parameters)
        while self.due:
            protocol = self.due[0]
            with self.phases.measure("evaluating"):
                result = self._validation(protocol).evaluate(parameters, self.step, self.stop)
                if result is None:
                    self.end_stopped("Stopped in an evaluation")
                self._write_metrics(result.metrics)
                self.checkpoints.add_metrics(self.step, result.metrics)
            self.patience.update(self.step, result.metrics)
            self.due = self.due[1:]
            if self.patience.is_over and self.step < self.setup.total_steps:
                self._end_early(protocol)
        return result

    def _end_early(self, evaluated: EvalProtocol) -> None:
        """Writes the last log line, and makes the evaluation due that follows the last step, unless it is done."""
        if self.deferred_metrics.unlogged:
            self.log()
        if self.setup.protocol not in (evaluated, *self.due):
            self.due.append(self.setup.protocol)

    def _validation(self, protocol: EvalProtocol) -> Validation:
        # The name identifies the protocol: the two protocols of a run differ at most in clips and crops.
        if protocol.name not in self._validations:
            left = self._evaluations_left(protocol)
            self._validations[protocol.name] = Validation(self.setup, self.workdir, protocol, left)
        return self._validations[protocol.name]

    def save(self) -> None:
        """Starts saving a checkpoint. Before, the metrics of all steps must have been fetched.

        Besides the arrays, a checkpoint holds the host state. Its keys are names of the stored format:

        - `bad_in_pass`, an int: the videos of the current pass that could not be decoded, over all processes.
        - `bad`, {path: int}: for each video that process 0 could not decode, how many clips of it were left out. Only
          process 0 writes the host state, so the paths in other processes are not stored.
        - `pending`, a list of dicts: the metrics of the steps since the last log line.
        - `patience`, the `state` of `Patience` before the evaluations of this state.
        - `due`, a list of str: the names of the protocols by which the state is to be evaluated. The metrics of
          finished evaluations are added to the checkpoint later.
        """
        host_state = {
            "bad_in_pass": self.bad_videos.count_in_pass,
            "bad": self.bad_videos.clips_by_path,
            "pending": self.deferred_metrics.unlogged,
            "patience": self.patience.state,
            "due": [protocol.name for protocol in self.due],
        }
        self.saved_step = self.step
        self.checkpoints.save(self.step, convert_layers(self.state, self.setup.abstract), host_state)

    def end_stopped(self, what: str) -> NoReturn:
        """Waits until the state is saved, and raises `Interrupted`."""
        self.checkpoints.wait()
        raise self.stop.interruption(
            f"{what} at step {self.step} of {self.setup.total_steps}, which is saved: the same command continues."
        )

    @contextmanager
    def saved_on_error(self):
        """Saves the state if an error ends the run, and adds to the error a note on how the run continues."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            with suppress(Exception):  # `error` is the one to report
                if self._can_save_after(error):
                    self._fetch_after_error()
                    self.save()
            with suppress(Exception):
                self.checkpoints.wait()
            error.add_note(self._how_to_continue())
            raise

    def _can_save_after(self, error: Exception) -> bool:
        """Returns whether there is a state to save that is whole, not saved yet, and as far as is known finite."""
        return (
            jax.process_count() == 1  # several processes would have to save at the same step
            and self.saved_step != self.step
            and not isinstance(error, NotFiniteError)
            # A step that has failed has deleted the arrays of the state before.
            and not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
        )

    def _how_to_continue(self) -> str:
        step = self.checkpoints.latest_step
        if step is None:
            return "No checkpoint is saved, so the same command starts from step 0."
        return f"The same command continues from the checkpoint of step {step}."

    def _fetch_after_error(self) -> None:
        """Fetches the remaining metrics. The videos of their steps are counted, but are no second error."""
        while True:
            try:
                return self.fetch_metrics(fetch_all=True)
            except DataError:
                continue

    def close(self) -> None:
        """Ends the workers of the evaluations."""
        for validation in self._validations.values():
            validation.close()


def training_loop(run: TrainingRun, train_step, batches: Iterator[dict] | None) -> EvalResult:
    """Runs the steps that are left, and returns the result of the last evaluation.

    A run that was stopped or killed at any moment gives, when continued, results that are bit-identical to those of an
    uninterrupted run. This works because:

    - Step n uses batch n. The data iterator has no other state than the step.
    - Before a save, the metrics of all steps are fetched and checked to be finite. The metrics since the last log line
      are saved with the state, and the next log line averages over them.
    - The state is saved before it is evaluated. The checkpoint names the evaluations that are due, and a continued run
      makes them first.

    Args:
        run: the run.
        train_step, batches: the compiled step and the batches, or None if the run has no steps left.
    Raises:
        ConfigError: the loss or the gradient of a step is not finite.
        DataError: too many videos cannot be decoded.
        Interrupted: a signal stopped the run. The state is saved.
    """
    total_steps = run.setup.total_steps
    if run.step and run.should_log and run.deferred_metrics.unlogged:  # an error ended the run before this line
        run.log()
    with run.throughput.paused():
        result = run.evaluate_due()
    with Bar("train", total_steps, run.step, shown=jax.process_index() == 0) as bar:
        while not run.is_finished:
            run.advance(train_step, batches)
            should_save = bool(run.due) or run.step % run.checkpoints.every_steps == 0
            fetch_all = run.should_log or should_save or run.stop.agreed
            run.fetch_metrics(fetch_all)
            run.trace.after(run.step, run.state)
            bar.advance()
            if run.should_log:
                bar.status(status_line(run.log()))
            # If `stop.agreed` became True only after `fetch_all` was computed, some metrics may still be unfetched.
            # Then the state cannot be saved, and the run stops at the next step. `stop.agreed` is equal in all
            # processes, since they have fetched the same metrics.
            should_stop = fetch_all and run.stop.agreed
            with run.throughput.paused():
                if should_save or should_stop:
                    run.save()
                if should_stop:
                    run.end_stopped("Stopped")
                result = run.evaluate_due() or result
    if run.step < total_steps and jax.process_index() == 0:
        log(run.patience.sentence(run.step))
    assert result is not None  # `setup.protocol` is due after the last step
    return result

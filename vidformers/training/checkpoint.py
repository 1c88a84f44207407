"""Checkpoints of the training state: arrays by Orbax, checksums, metrics, and which checkpoints are kept."""

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from input_pipeline.stop_signals import stop_signals_deferred
from input_pipeline.text import one_line
from vidformers.errors import ConfigError, require
from vidformers.parallel import memory
from vidformers.parallel.processes import allgather_strings, barrier
from vidformers.progress import log
from vidformers.training.checkpoint_folder import HAS_CHECKSUMS, CheckpointFolder, score
from vidformers.training.config import CheckpointConfig
from vidformers.training.workdir import last_saved_step, note_saved

# What Orbax raises for a damaged checkpoint (nothing but ValueError and KeyError in 3,400 cases), what the system says
# of a file, and what JAX says of its memory. Any other exception is an error of the program.
_READ_ERRORS = (ValueError, KeyError, OSError, MemoryError, jax.errors.JaxRuntimeError)

# Compression would make the files of a training state 11% smaller, and a restore 1.5 times as long (`python -m
# benchmarks.restore`). Uncompressed arrays also load without an error if they are damaged: see `_restore_step`.
_UNCOMPRESSED = ocp.Context()
_UNCOMPRESSED.array.saving.use_compression = False


class _StoredState(NamedTuple):
    """The training state under the names that checkpoints use.

    A checkpoint names each array by its path in this tuple. The field `opt_state` of `State` is stored as `optimizer`,
    and `ema` as `average`, so that checkpoints of earlier versions can be restored. The order is that of `State`.
    """

    step: Any
    parameters: Any
    optimizer: Any
    average: Any


class Checkpoints:
    """Saves and restores the checkpoints in `workdir/checkpoints`. A context manager. Saves run in the background.

    A checkpoint gets its final name after all of it and its checksums are written. If a save is killed, the previous
    checkpoint is the latest one. In a run of several processes, all of them call each method.

    Args:
        workdir: the folder of the run.
        every_steps: steps between saves. The training loop reads it.
        keep: the newest `keep` checkpoints are kept.
        best: a metric. The checkpoint with the highest value of this metric is also kept. None: `val/top1@1x1`.
        read_only: changes nothing in the folder, since another process may be writing to it.
    Raises:
        ConfigError: `every_steps` or `keep` is below 1, or the folder cannot be made.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        every_steps: int = 1000,
        keep: int = 2,
        best: str | None = None,
        read_only: bool = False,
    ):
        config = CheckpointConfig(every_steps=every_steps, keep=keep, best=best)
        self.every_steps, self.best = every_steps, config.best_metric()
        self._workdir, self._keep, self._read_only = Path(workdir).absolute(), keep, read_only
        self._folder = CheckpointFolder(self._workdir / "checkpoints")
        self._is_main = jax.process_index() == 0
        self._thread = ThreadPoolExecutor(1, "save")
        self._pending_save: Future | None = None
        if self._is_main and not read_only:
            self._convert_os_errors(self._prepare_folder)

    def _prepare_folder(self) -> None:
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._folder.remove_unfinished()

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        try:
            self.wait()
        except Exception:
            if error_type is None:  # otherwise the error of the `with` block is the one to report
                raise
        finally:
            self._thread.shutdown()

    def save(self, step: int, state, host_state: dict) -> None:
        """Starts a save, after the previous save has finished.

        Args:
            step: the number of finished steps.
            state: the `State`.
            host_state: the state of the training loop that is not in `state`. Stored as JSON.
        Raises:
            ConfigError: the file system refuses this save or the previous one.
        """
        self.wait()
        barrier()  # process 0 also computes the checksums of the previous save

        def start():
            with _UNCOMPRESSED:
                writing = ocp.save_checkpointables_async(
                    self._folder.saving_path(step),
                    {"state": _StoredState(*state)},
                    overwrite=True,
                    custom_metadata=host_state | {HAS_CHECKSUMS: True},
                )
            return self._thread.submit(self._finish_save, step, writing)

        self._pending_save = self._convert_os_errors(start)

    def _finish_save(self, step: int, writing) -> None:
        """Waits until all processes have written their arrays. Then process 0 completes the checkpoint."""
        writing.result()
        if self._is_main:
            self._folder.publish(step)
            note_saved(self._workdir, step)
            self._folder.remove_all_but(self._keep, self.best)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds metrics to the checkpoint of `step`, after the last save has finished.

        The metric `best` decides which checkpoint is kept as the best one. Until it is known, the previous best one is
        kept as well.

        Raises:
            ConfigError: the file system refuses the metrics or the last save.
        """
        self.wait()
        if self._is_main and metrics:
            self._convert_os_errors(lambda: self._add_metrics(step, metrics))

    def _add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if step in self._folder.steps():
            self._folder.write_metrics(step, self._folder.read_metrics(step)[0] | metrics)
            self._folder.remove_all_but(self._keep, self.best)

    def read_metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics of a checkpoint, {} if it has none. All processes return the same."""
        metrics = self._folder.read_metrics(step)[0] if self._is_main else {}
        return json.loads(allgather_strings(json.dumps(metrics))[0])

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return max(self._folder.steps(), default=None)

    def wait(self) -> None:
        """Waits until the last save has finished. Raises like `save`."""
        pending, self._pending_save = self._pending_save, None
        if pending is not None:
            self._convert_os_errors(pending.result)

    def _convert_os_errors(self, write: Callable[[], Any]) -> Any:
        """Returns `write()`. An error of the file system becomes a ConfigError."""
        try:
            return write()
        except Exception as error:
            reason = _file_system_error(error)
            if reason is None:
                raise
        raise ConfigError(
            f"A checkpoint cannot be written to {self._folder.path}: {reason}. Fix this and run the same command again."
        )

    def restore(self, abstract_state, which: str = "latest") -> tuple[Any, dict, int] | None:
        """Restores the newest or the best checkpoint that is not damaged.

        Each process verifies its part of the checksums. A damaged checkpoint is named in the log and renamed, or left
        as it is if `read_only`.

        Args:
            abstract_state: a `State` of `jax.ShapeDtypeStruct`. The restored arrays get its shardings.
            which: 'latest', or 'best' for the checkpoint with the highest value of the metric `best`. If no checkpoint
                has metrics, 'best' is the latest one.
        Returns:
            (state, host_state, step), or None if there is no checkpoint.
        Raises:
            ConfigError: all checkpoints are damaged or gone, a checkpoint cannot be read, or the names or shapes of its
                arrays differ from the state.
        """
        steps, damaged = self._candidates(which)
        for step in steps:
            restored, damage = self._restore_step(step, abstract_state)
            if damage is None:
                if not damaged:
                    self._log_if_newest_is_gone()
                return restored
            self._leave_out(step, damage)
            damaged.append((step, damage))
        require(
            not damaged,
            f"All checkpoints in {self._folder.path} are damaged: "
            f"{'; '.join(f'step {step}: {damage}' for step, damage in damaged)}. Restore them from a copy, or give "
            "another --workdir.",
        )
        if not self._read_only:
            require(
                not any(map(int, allgather_strings(str(int(self._had_checkpoints()))))),
                f"--workdir={self._workdir} holds a run that has saved checkpoints, but {self._folder.path} holds none "
                "that can be restored. Restore this folder from a copy, or give another --workdir.",
            )
        return None

    def _candidates(self, which: str) -> tuple[list[int], list[tuple[int, str]]]:
        """Returns the steps of the checkpoints in the order in which they are tried, and those with damaged metrics.

        Process 0 reads the folder, so that all processes return the same.
        """
        read = [(step, *self._folder.read_metrics(step)) for step in self._folder.steps()] if self._is_main else []
        read = json.loads(allgather_strings(json.dumps(read))[0])
        damaged = [(step, damage) for step, _, damage in read if damage is not None]
        for step, damage in damaged:
            self._leave_out(step, damage)
        sound = [(step, metrics) for step, metrics, damage in reversed(read) if damage is None]
        scored = {step: score(metrics, self.best) for step, metrics in sound if metrics}
        if which == "best" and scored:
            return sorted(scored, key=lambda step: (scored[step], step), reverse=True), damaged
        return [step for step, _ in sound], damaged

    def _restore_step(self, step: int, abstract_state) -> tuple[tuple[Any, dict, int] | None, str | None]:
        """Returns (what `restore` returns, None), or (None, what is damaged). All processes return the same damage.

        Small files are verified first. They hold the names, shapes and places of the arrays, so a load may fail if they
        are damaged. Large files hold the bytes of the arrays, and a load takes any bytes for numbers. A thread verifies
        them during the load, so that they are read from the disk once.
        """
        damage = _first(self._find_damage(step, large=False))
        if damage is not None:
            return None, damage
        with ThreadPoolExecutor(1, "verify") as thread:
            verification = thread.submit(self._find_damage, step, large=True)
            try:
                host_state = self._read_metadata(step, abstract_state)
                state = self._load(step, abstract_state)
            except ConfigError:
                raise
            except _READ_ERRORS as error:
                # Compressed arrays, as earlier versions saved them, may not load if they are damaged. With several
                # processes, the others may not have failed, and would wait for this one.
                damage = verification.result() if jax.process_count() == 1 else ""
                return None, damage or self._unreadable(step, error)
        damage = _first(verification.result())
        return (None, damage) if damage is not None else ((state, host_state, step), None)

    def _find_damage(self, step: int, *, large: bool) -> str:
        """Returns what is damaged in the files that this process verifies, "" if nothing is."""
        try:
            return self._folder.find_damage(step, jax.process_index(), jax.process_count(), large=large) or ""
        except OSError as error:
            self._require_present(step)
            raise ConfigError(
                f"{error.filename} cannot be read: {error.strerror}. Fix this and run the same command again."
            ) from None

    def _leave_out(self, step: int, damage: str) -> None:
        """Logs that a checkpoint is damaged, and renames it unless `read_only`."""
        self._require_present(step)
        message = f"The checkpoint of step {step} in {self._folder.path} is damaged: {damage}."
        if self._is_main and self._read_only:
            log(f"{message} It is left out.")
        elif self._is_main:
            log(f"{message} It is renamed to {self._folder.set_aside(step).name} and left out.")

    def _require_present(self, step: int) -> None:
        """Raises ConfigError if a run has removed the checkpoint while this process was reading it."""
        steps = self._folder.steps()
        require(
            not self._read_only or step in steps,
            f"The checkpoint of step {step} in {self._folder.path} was replaced by a newer one while it was read. "
            "Run the same command again.",
        )

    def _had_checkpoints(self) -> bool:
        return self._is_main and (self._folder.has_damaged() or last_saved_step(self._workdir) > 0)

    def _log_if_newest_is_gone(self) -> None:
        saved, steps = 0, self._folder.steps()
        with suppress(ConfigError):  # run.json is damaged, which its other readers say
            saved = last_saved_step(self._workdir)
        if self._is_main and steps and saved > steps[-1]:
            log(
                f"The checkpoint of step {saved} in {self._folder.path} is gone. The newest there has step {steps[-1]}."
            )

    def _read_metadata(self, step: int, abstract_state) -> dict:
        """Returns the host state of a checkpoint, after comparing its arrays with `abstract_state`."""
        with stop_signals_deferred():
            metadata = ocp.checkpointables_metadata(self._folder.step_path(step))
        self._require_same_arrays(metadata.metadata["state"], _StoredState(*abstract_state), step)
        host_state = dict(metadata.custom_metadata or {})
        if not host_state.pop(HAS_CHECKSUMS, False) and self._is_main:
            log(f"The checkpoint of step {step} in {self._folder.path} was saved without checksums. It is unverified.")
        return host_state

    def _load(self, step: int, abstract_state) -> Any:
        abstract = {"state": _StoredState(*abstract_state)}
        # Orbax catches the exception of a signal and returns a checkpoint without arrays, which would count as damaged.
        with stop_signals_deferred():
            return type(abstract_state)(*ocp.load_checkpointables(self._folder.step_path(step), abstract)["state"])

    def _unreadable(self, step: int, error: Exception) -> str:
        """Returns a clause for a checkpoint without checksums that cannot be read, and so is probably damaged.

        Raises:
            ConfigError: the checkpoint is verified, so the reason is another one, or there are several processes, which
                might not all have failed.
        """
        self._require_present(step)
        reason = f"{type(error).__name__}: {one_line(error)}"
        is_other_reason = isinstance(error, MemoryError) or memory.is_out_of_memory(error)
        if self._folder.is_verified(step) or is_other_reason or jax.process_count() > 1:
            raise ConfigError(
                f"The checkpoint {self._folder.step_path(step)} cannot be read ({reason}). If it is damaged, rename "
                "this folder, and the run continues from the previous checkpoint."
            ) from error
        return f"it cannot be read ({reason})"

    def _require_same_arrays(self, stored, wanted, step: int) -> None:
        stored_shapes, wanted_shapes = _shapes(stored), _shapes(wanted)
        if not stored_shapes:
            raise ValueError("no arrays are listed")
        for name in sorted(stored_shapes.keys() | wanted_shapes.keys()):
            require(
                stored_shapes.get(name) == wanted_shapes.get(name),
                f"The checkpoint of step {step} in {self._folder.path} does not fit the model: {name} is "
                f"{stored_shapes.get(name, 'absent')} there and {wanted_shapes.get(name, 'absent')} here. Give the "
                "fields of the sections model and optim with which it was trained.",
            )


def _first(own: str) -> str | None:
    """Returns the first text of all processes that is not empty."""
    return next(filter(None, allgather_strings(own)), None)


def _file_system_error(error: BaseException | None) -> str | None:
    """Returns the message of the OSError that Orbax or TensorStore has wrapped, None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno)
        match = re.search(r"os_error_code='(\d+)'", str(error))
        if match:
            return os.strerror(int(match[1]))
        error = error.__cause__ or error.__context__
    return None


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by its path, such as `parameters/head/kernel`.

    The path is the same whether a container is a NamedTuple, as in `State`, or a dict, as Orbax lists it.
    """
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path): tuple(
            leaf.shape
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

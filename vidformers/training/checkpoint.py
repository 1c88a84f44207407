"""Checkpoints of the training state, by Orbax."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from vidformers.errors import ConfigError, require

_policies = ocp.training.preservation_policies


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

    A checkpoint gets its final name after all of it is written. If a save is killed, the previous checkpoint is the
    latest one.

    Args:
        workdir: the folder of the run.
        every_steps: steps between saves. The training loop reads it.
        keep: the newest `keep` checkpoints are kept.
        best: a metric. The checkpoint with the highest value of this metric is also kept.
        read_only: does not delete unfinished saves, since another process may be writing them.
    Raises:
        ConfigError: `every_steps` or `keep` is below 1.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        every_steps: int = 1000,
        keep: int = 2,
        best: str = "val/top1@1x1",
        read_only: bool = False,
    ):
        require(
            every_steps >= 1, f"checkpoint.every_steps={every_steps} must be at least 1, the steps from save to save."
        )
        require(keep >= 1, f"checkpoint.keep={keep} must be at least 1, or no run could continue.")
        self.every_steps, self.best, self.folder = every_steps, best, Path(workdir).absolute() / "checkpoints"
        self._pending_save: Any = None
        keep_best = _policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            # Every step may be saved: the training loop decides when.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        try:
            self._orbax.close()  # waits for a save in progress
        except Exception:
            if error_type is None:  # otherwise the error of the `with` block is the one to report
                raise

    def _score(self, metrics: dict) -> float:
        return metrics.get(self.best, -1.0)  # absent if the run was continued with another `best`

    def save(self, step: int, state, host_state: dict, metrics: dict | None = None) -> None:
        """Starts a save, after the previous save has finished.

        Args:
            step: the number of finished steps.
            state: the `State`.
            host_state: the state of the training loop that is not in `state`. Stored as JSON.
            metrics: the metrics of this step, among them `best`; None or {} if the step was not evaluated.
        Raises:
            ConfigError: the file system refuses this save or the previous one.
        """
        self.wait()
        self._pending_save = self._convert_os_errors(
            lambda: self._orbax.save_checkpointables_async(
                step, {"state": _StoredState(*state)}, force=True, metrics=metrics or None, custom_metadata=host_state
            )
        )

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
        steps = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        newest = f"continues from the checkpoint of step {max(steps)}" if steps else "starts again from step 0"
        raise ConfigError(
            f"A checkpoint cannot be written to {self.folder}: {reason}. Fix this and run the same command again, "
            f"which {newest}."
        )

    def restore(self, abstract_state, which: str = "latest") -> tuple[Any, dict, int] | None:
        """Restores a checkpoint.

        Args:
            abstract_state: a `State` of `jax.ShapeDtypeStruct`. The restored arrays get its shardings.
            which: 'latest', or 'best' for the checkpoint with the highest value of the metric `best`. If no checkpoint
                has metrics, 'best' is the latest one.
        Returns:
            (state, host_state, step), or None if there is no checkpoint.
        Raises:
            ConfigError: the checkpoint cannot be read, or the names or shapes of its arrays differ from the state.
        """
        chosen = self._orbax.latest
        if which == "best":
            scored = [checkpoint for checkpoint in self._orbax.checkpoints if checkpoint.metrics]
            chosen = max(
                scored, key=lambda checkpoint: (self._score(checkpoint.metrics), checkpoint.step), default=chosen
            )
        if chosen is None:
            return None
        try:
            metadata = self._orbax.checkpointables_metadata(chosen)
            abstract = _StoredState(*abstract_state)
            self._require_same_arrays(metadata.metadata["state"], abstract, chosen.step)
            state = type(abstract_state)(*self._orbax.load_checkpointables(chosen, {"state": abstract})["state"])
        except ConfigError:
            raise
        except Exception as error:
            require(
                chosen.path.is_dir(),
                f"The checkpoint of step {chosen.step} in {self.folder} was replaced by a newer one while it was read. "
                "Run the same command again.",
            )
            reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
            raise ConfigError(
                f"The checkpoint {chosen.path} cannot be read ({type(error).__name__}: {reason}). If it is damaged, "
                "delete this folder, and the run continues from the previous checkpoint."
            ) from error
        return state, dict(metadata.custom_metadata or {}), chosen.step

    def _require_same_arrays(self, stored, wanted, step: int) -> None:
        stored_shapes, wanted_shapes = _shapes(stored), _shapes(wanted)
        if not stored_shapes:
            raise ValueError("no arrays are listed")
        for name in sorted(stored_shapes.keys() | wanted_shapes.keys()):
            require(
                stored_shapes.get(name) == wanted_shapes.get(name),
                f"The checkpoint of step {step} in {self.folder} does not fit the model: {name} is "
                f"{stored_shapes.get(name, 'absent')} there and {wanted_shapes.get(name, 'absent')} here. Give the "
                "fields of the sections model and optim with which it was trained.",
            )


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

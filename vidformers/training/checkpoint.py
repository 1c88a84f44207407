"""Checkpoints by Orbax: what is kept, what is restored, and what is said when it does not fit."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from vidformers.errors import ConfigError, require

policies = ocp.training.preservation_policies


class _StoredState(NamedTuple):
    """The fields of `State` under the names that checkpoints keep."""

    step: Any
    parameters: Any
    optimizer: Any
    average: Any


class Checkpoints:
    """The checkpoints of a run, under `workdir/checkpoints`, written in the background.

    Args:
        every_steps: steps between saves.
        keep: how many of the newest stay.
        best: the figure whose highest checkpoint stays as well.
        read_only: leave alone what another process may be writing there.
    A save killed half-way leaves the one before it as the latest.
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
        require(every_steps >= 1, f"checkpoint.every_steps={every_steps} must be at least 1.")
        require(keep >= 1, f"checkpoint.keep={keep} must be at least 1.")
        self.every_steps, self.best, self.folder = every_steps, best, Path(workdir).absolute() / "checkpoints"
        self.saving = None
        keep_best = policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
        self.orbax = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.orbax.close()  # lets a save that has begun come to its end
        except Exception:
            if kind is None:
                raise

    def _score(self, figures: dict) -> float:
        return figures.get(self.best, -1.0)  # a run may continue with another `best`

    def save(self, step: int, state, progress: dict, figures: dict | None = None) -> None:
        """Begins to save; waits first for the save before. `progress` is JSON kept beside the state.

        Raises:
            ConfigError: the file system refuses; the sentence says why, and which checkpoint is whole.
        """
        self.wait()
        self.saving = self._write(
            lambda: self.orbax.save_checkpointables_async(
                step, {"state": _StoredState(*state)}, force=True, metrics=figures or None, custom_metadata=progress
            )
        )

    def wait(self) -> None:
        """Returns when nothing is left to write; raises like `save`."""
        saving, self.saving = self.saving, None
        if saving is not None:
            self._write(saving.result)

    def _write(self, write):
        """What `write` returns, with the refusals of the file system in a sentence."""
        try:
            return write()
        except Exception as error:
            reason = _refusal(error)
            if reason is None:
                raise
        whole = max((int(path.name) for path in self.folder.iterdir() if path.name.isdigit()), default=None)
        kept = "no checkpoint is there yet" if whole is None else f"the checkpoint of step {whole} is whole"
        raise ConfigError(
            f"A checkpoint cannot be written to {self.folder}: {reason}; {kept}, and the same command "
            "continues when this is remedied."
        )

    def restore(self, abstract_state, which: str = "latest"):
        """(state, progress, step) of the latest or best checkpoint, laid out as `abstract_state` says; None if none.

        Raises:
            ConfigError: the checkpoint holds other arrays than the state; the sentence names the first that differs.
        """
        chosen = self.orbax.latest
        if which == "best":
            scored = [c for c in self.orbax.checkpoints if c.metrics]
            chosen = max(scored, key=lambda c: (self._score(c.metrics), c.step), default=chosen)
        if chosen is None:
            return None
        try:
            metadata = self.orbax.checkpointables_metadata(chosen)
            stored = _StoredState(*abstract_state)
            self._check(metadata.metadata["state"], stored, chosen.step)
            state = type(abstract_state)(*self.orbax.load_checkpointables(chosen, {"state": stored})["state"])
        except ConfigError:
            raise
        except Exception as error:
            require(
                chosen.path.is_dir(),
                f"The checkpoint of step {chosen.step} in {self.folder} was replaced by a "
                "newer one while it was read: run the same command again.",
            )
            reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
            raise ConfigError(
                f"The checkpoint {chosen.path} cannot be read ({type(error).__name__}: {reason}); if it "
                "is damaged, delete this folder to continue from the one before."
            ) from error
        return state, dict(metadata.custom_metadata or {}), chosen.step

    def _check(self, stored, wanted, step: int) -> None:
        stored, wanted = _shapes(stored), _shapes(wanted)
        if not stored:
            raise ValueError("no arrays are listed")
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise ConfigError(
                    f"The checkpoint of step {step} in {self.folder} does not fit the model: {name} is "
                    f"{stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
                )


def _refusal(error: BaseException | None) -> str | None:
    """What the file system said, of an error that Orbax or TensorStore wrapped around it; None where it is another."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno)
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found:
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return None


def _shapes(tree) -> dict:
    """Names joined by slashes -> shapes; namedtuples, tuples and dicts name their members alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path): tuple(
            leaf.shape
        )
        for path, leaf in leaves
    }

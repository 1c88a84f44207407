"""Checkpoints by Orbax: what is kept, what is restored, and what is said when it does not fit."""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from vidformers.errors import ConfigError, require

policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of a run, under `workdir/checkpoints`, written in the background.

    Args:
        every_steps: steps between saves.
        keep: how many of the newest stay.
        best: the figure whose highest checkpoint stays as well.
    A save killed half-way leaves the one before it as the latest.
    """

    def __init__(self, workdir: Path, *, every_steps: int = 1000, keep: int = 2, best: str = "val/top1@1x1"):
        require(every_steps >= 1, f"checkpoint.every_steps={every_steps} must be at least 1.")
        require(keep >= 1, f"checkpoint.keep={keep} must be at least 1.")
        self.every_steps, self.best, self.folder = every_steps, best, Path(workdir).absolute() / "checkpoints"
        keep_best = policies.BestN(get_metric_fn=lambda figures: figures[best], n=1,
                                   keep_checkpoints_without_metrics=False)
        self.orbax = ocp.training.Checkpointer(
            self.folder, save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
            cleanup_tmp_directories=True)

    def save(self, step: int, state, progress: dict, figures: dict | None = None) -> None:
        """Begins to save; waits first for the save before. `progress` is JSON kept beside the state."""
        if self.orbax.latest is not None and self.orbax.latest.step == step:
            return
        metrics = {self.best: float(figures[self.best])} if figures and self.best in figures else None
        self._say_full(lambda: self.orbax.save_checkpointables_async(
            step, {"state": state}, force=True, metrics=metrics, custom_metadata=progress))

    def wait(self) -> None:
        """Returns when nothing is left to write."""
        self._say_full(self.orbax.close)

    def _say_full(self, write) -> None:
        try:
            write()
        except Exception as error:  # Orbax wraps what the file system said
            text = f"{error} {error.__cause__}"
            if "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text:
                raise ConfigError(f"The disk of {self.folder} is full; the checkpoint of step {self.latest} is whole. "
                                  "Make room and run the same command again.") from None
            raise

    @property
    def latest(self) -> int | None:
        return None if self.orbax.latest is None else self.orbax.latest.step

    def restore(self, abstract_state, which: str = "latest"):
        """(state, progress, step) of the latest or best checkpoint, laid out as `abstract_state` says; None if none.

        Raises:
            ConfigError: the checkpoint holds other arrays than the state; the sentence names the first that differs.
        """
        chosen = self.orbax.latest
        if which == "best":
            scored = [c for c in self.orbax.checkpoints if c.metrics and self.best in c.metrics]
            chosen = max(scored, key=lambda c: c.metrics[self.best], default=chosen)
        if chosen is None:
            return None
        metadata = self.orbax.checkpointables_metadata(chosen)
        self._check(metadata.metadata["state"], abstract_state, chosen.step)
        state = self.orbax.load_checkpointables(chosen, {"state": abstract_state})["state"]
        return state, dict(metadata.custom_metadata or {}), chosen.step

    def _check(self, stored, wanted, step: int) -> None:
        stored, wanted = _shapes(stored), _shapes(wanted)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise ConfigError(f"The checkpoint of step {step} in {self.folder} does not fit the model: {name} is "
                                  f"{stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} here.")


def _shapes(tree) -> dict:
    """Names joined by slashes -> shapes; namedtuples, tuples and dicts name their members alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path):
            tuple(leaf.shape) for path, leaf in leaves}

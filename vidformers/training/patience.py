"""Early stopping: a run ends when a metric of its evaluations no longer rises."""

from typing import Any

from vidformers.errors import require


class Patience:
    """Counts the evaluations since the last rise of a metric.

    An equal value is no rise. The state of a run holds the count before the evaluations of its step, and a checkpoint
    holds the metrics of these, so that a run that is continued ends at the same step.

    Args:
        metric: the name of the metric, such as 'val/top1@1x1'. Other metrics are ignored.
        limit: the number of evaluations without a rise after which the run ends, or None.
        stored: `state` of the restored run, {} in a new run and in one of an earlier version.
    """

    def __init__(self, metric: str, limit: int | None, stored: dict[str, Any]):
        self.metric, self._limit = metric, limit
        self.best: float | None = stored.get("best")
        self.best_step: int = stored.get("best_step", 0)
        self.count: int = stored.get("count", 0)

    @property
    def state(self) -> dict[str, Any]:
        """The highest value so far, its step, and the number of evaluations since, for JSON."""
        return {"best": self.best, "best_step": self.best_step, "count": self.count}

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return self._limit is not None and self.count >= self._limit

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of an evaluation of the state after `step`."""
        if self.metric not in metrics:
            return
        value = metrics[self.metric]
        if self.best is None or value > self.best:
            self.best, self.best_step, self.count = value, step, 0
        else:
            self.count += 1

    def sentence(self, step: int) -> str:
        """Returns why the run ended after `step`."""
        return (
            f"Stopped at step {step}: {self.metric} has not risen in the last {self.count} evaluations "
            f"(train.patience). The best value is {self.best:.4f}, of step {self.best_step}."
        )


def check_patience(limit: int | None, best: str, eval_every: int | None, total_steps: int) -> None:
    """Checks that the metric `best` is evaluated during training, if `limit` is given.

    Args:
        limit: the field train.patience.
        best: the metric by which the best checkpoint is chosen.
        eval_every: steps between two periodic evaluations, or None.
        total_steps: the length of the run.
    Raises:
        ConfigError: the run has no such evaluations.
    """
    if limit is None:
        return
    require(
        eval_every is not None and eval_every < total_steps,
        f"train.patience={limit} counts the evaluations during training, of which this run of {total_steps} steps has "
        "none. Set train.eval_every_steps or train.eval_every_epochs, or leave out train.patience.",
    )
    require(
        best.endswith("@1x1"),
        f"train.patience={limit} needs a metric of the evaluations during training, which have 1x1 views, but "
        f"checkpoint.best={best} is computed after the last step. Set checkpoint.best to "
        f"{best.partition('@')[0]}@1x1.",
    )

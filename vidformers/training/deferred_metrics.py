"""The metrics of training steps, fetched from the devices with a delay and averaged between two log lines."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from vidformers.errors import ConfigError

_MAX_UNFETCHED = 2  # steps by which the host may run ahead of the devices


class NotFiniteError(ConfigError):
    """Raised when the loss or the gradient of a step is not finite."""


class DeferredMetrics:
    """The metrics of the steps since the last log line.

    Metrics are fetched with a delay of two steps, so that the host prepares the next steps while the devices compute.
    Loss and gradient norm are checked when they are fetched. So a state may be saved only after all metrics up to its
    step have been fetched: otherwise a checkpoint could hold parameters that are not finite.

    Args:
        unlogged: the metrics of the restored checkpoint that no log line has averaged, one dict per step.
    """

    def __init__(self, unlogged: list[dict]):
        self._on_device: deque = deque()
        self._unlogged = list(unlogged)

    def add(self, step: int, metrics: dict) -> None:
        """Adds the metrics of `step`, which are still on the devices."""
        self._on_device.append((step, metrics))

    def fetch(self, fetch_all: bool) -> Iterator[tuple[int, dict]]:
        """Yields (step, metrics) in order: of all steps if `fetch_all`, otherwise of all but the last two.

        Raises:
            NotFiniteError: the loss or the gradient of a step is not finite.
        """
        while len(self._on_device) > (0 if fetch_all else _MAX_UNFETCHED):
            step, metrics = self._on_device[0]
            metrics = {name: float(value) for name, value in metrics.items()}
            _require_finite(step, metrics)
            self._unlogged.append(metrics)
            self._on_device.popleft()  # only now: a state must not be saved if one of its metrics was not finite
            yield step, metrics

    @property
    def unlogged(self) -> list[dict]:
        """The metrics of all steps since the last log line. A checkpoint stores them.

        The log line after a resume averages over these steps too, so it equals that of an uninterrupted run.
        """
        assert not self._on_device, "a checkpoint needs the metrics of all steps"
        return list(self._unlogged)

    def averages(self, batch_size: int) -> dict:
        """Returns the metrics of a log line. All steps must have been fetched.

        Loss and top-1 are averaged over the decoded clips of all steps. Gradient norm and learning rate are those of
        the last step. `train/bad_rows` counts the rows that could not be decoded.
        """
        steps = self.unlogged
        counts = np.array([metrics["count"] for metrics in steps])
        weights = counts if counts.any() else None  # np.average refuses weights whose sum is zero
        averages = {
            f"train/{name}": float(np.average([metrics[name] for metrics in steps], weights=weights))
            for name in ("loss", "top1")
            if name in steps[-1]
        }
        return averages | {
            "train/gradient_norm": steps[-1]["gradient_norm"],
            "train/lr": steps[-1]["lr"],
            "train/bad_rows": len(steps) * batch_size - float(counts.sum()),
        }

    def start_next_line(self) -> None:
        """Starts the next log line, after the row of the last one is written."""
        self._unlogged.clear()


def _require_finite(step: int, metrics: dict) -> None:
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(metrics[name]):
            raise NotFiniteError(
                f"The {name.replace('_', ' ')} is {metrics[name]} at step {step}: lower optim.lr, set optim.clip_norm, "
                "or use model.dtype=float32."
            )

"""Stopping a run between two steps, after SIGTERM or ctrl-C."""

import signal

import jax
import numpy as np


class StopSignal:
    """Records the first SIGTERM or SIGINT, so that the training loop can stop between two steps. The second one kills.

    In a run of several processes, any process may get the signal, but all must stop at the same step. Therefore each
    process sends its flag with the batch (`attach_flag`), the training step takes the maximum over all processes, and
    all processes read it from the same metrics (`read_flag`).

    `signal` is the number of the signal that this process got, or None.
    """

    def __enter__(self):
        self.signal, self._flag_seen = None, False
        self._handlers = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _record(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def agreed(self) -> bool:
        """Whether all processes stop. Equal in all processes once they have read the flags from the same metrics."""
        return self._flag_seen if jax.process_count() > 1 else self.signal is not None

    def attach_flag(self, batch: dict) -> dict:
        """Returns the batch of this process, with the field `stop` added if there are several processes."""
        if jax.process_count() == 1:
            return batch
        return batch | {"stop": np.full(len(batch["mask"]), self.signal is not None, np.float32)}

    def read_flag(self, metrics: dict) -> None:
        """Reads the maximum of the flags of all processes from the metrics of a step."""
        self._flag_seen = self._flag_seen or metrics.get("stop", 0) > 0


class Interrupted(Exception):
    """Raised when a signal stopped a run. The state is saved, and the same command continues the run.

    `signal` is the number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number

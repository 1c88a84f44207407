"""Stopping a run between two batches, after SIGTERM, SIGHUP or ctrl-C."""

import signal

import jax
import numpy as np

from input_pipeline.stop_signals import handled_signals, leave_closed_terminal


class StopSignal:
    """Records the first stop signal, so that training and evaluation can stop between two batches.

    In a run of several processes, any process may get the signal, but all must stop after the same batch. Therefore
    each process sends its flag with the batch (`attach_flag`), the step reduces the flags of all processes, and all
    processes read the same result (`read_flag`).

    Signals are recorded inside a `with` block. A second SIGINT or SIGTERM kills the process. `signal` is the number of
    the signal that this process got, or None.
    """

    def __init__(self):
        self.signal, self._flag_seen = None, False

    def __enter__(self):
        self._handlers = {number: signal.signal(number, self._record) for number in handled_signals()}
        return self

    def _record(self, number, _):
        self.signal = number
        if number == signal.SIGHUP:
            leave_closed_terminal()
            signal.signal(number, signal.SIG_IGN)  # both the terminal and its shell send SIGHUP
        else:
            signal.signal(number, signal.SIG_DFL)

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def agreed(self) -> bool:
        """Whether all processes stop. Equal in all processes once they have read the flags of the same batches."""
        return self._flag_seen if jax.process_count() > 1 else self.signal is not None

    def attach_flag(self, batch: dict) -> dict:
        """Returns the batch of this process, with the field `stop` added if there are several processes."""
        if jax.process_count() == 1:
            return batch
        return batch | {"stop": np.full(len(batch["mask"]), self.signal is not None, np.float32)}

    def read_flag(self, flag: float) -> None:
        """Reads what a step has made of the flags of all processes: above 0 if any process got a signal."""
        self._flag_seen = self._flag_seen or flag > 0

    def interruption(self, message: str) -> "Interrupted":
        """Returns the exception that ends the program after all processes have agreed to stop."""
        return Interrupted(message, self.signal or signal.SIGTERM)  # None if only another process got a signal


class Interrupted(Exception):
    """Raised when a signal has stopped training or evaluation. The same command continues.

    `signal` is the number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number

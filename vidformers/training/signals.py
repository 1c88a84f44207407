"""Stop signals outside the training loop and the evaluation, where `stopping.StopSignal` handles them.

The signal handler raises `StopRequested`, a KeyboardInterrupt. That is not enough, since some code ignores all
exceptions: Python ignores exceptions in `__del__` and in callbacks of the garbage collector, among them one of JAX, and
JAX ignores exceptions at some points of tracing. The signal would be lost, and the program would run on. Therefore
`StopRequested.__del__` sends the signal again if the exception is freed before `report_stop` has handled it. The delay
of 10 ms lets the code that ignored the exception return first.
`test_a_signal_is_sent_again_if_its_exception_is_swallowed` in tests/training/test_signals.py checks this.

This module imports no JAX: the handlers must be installed before the imports that take seconds.
"""

import os
import signal
import sys
import threading
import warnings

from input_pipeline.stop_signals import handled_signals, leave_closed_terminal

_RESEND_SECONDS = 0.01


class StopRequested(KeyboardInterrupt):
    """Raised when SIGINT, SIGTERM or SIGHUP arrives. `number` is the signal."""

    is_handled = False

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    def __del__(self):
        if not self.is_handled:
            threading.Timer(_RESEND_SECONDS, os.kill, (os.getpid(), self.number)).start()


def install_signal_handlers() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP raise `StopRequested`. SIGHUP stays ignored under nohup.

    A shell starts background programs with SIGINT ignored. After this call, SIGINT stops them as well.
    """

    def handle(number, _):
        if number == signal.SIGHUP:
            leave_closed_terminal()
        raise StopRequested(number)

    for number in handled_signals():
        signal.signal(number, handle)
    # Python reports each ignored exception on stderr. For `StopRequested` the report would mislead: it is sent again.
    sys.unraisablehook = lambda report: isinstance(report.exc_value, StopRequested) or sys.__unraisablehook__(report)


def report_stop(request: StopRequested) -> int:
    """Prints that the program was interrupted and returns its exit status, 128 + the number of the signal."""
    request.is_handled = True
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # both a closed terminal and its shell send it
    # The program ends here. Objects and coroutines that are freed early would print warnings.
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    print("Interrupted. Nothing is lost: run the same command again to continue.", file=sys.stderr)
    return 128 + request.number

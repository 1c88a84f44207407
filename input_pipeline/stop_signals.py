"""The signals that ask a program to stop: SIGINT of ctrl-C, SIGTERM of a scheduler, SIGHUP of a closed terminal.

All programs raise `StopRequested`, a KeyboardInterrupt, when one arrives, except that the training loop and the
evaluation record it (`vidformers.training.stopping.StopSignal`). An exception is not enough, since some code ignores
all exceptions: Python ignores exceptions in `__del__`, in callbacks of C libraries and in those of the garbage
collector, among them one of JAX, and JAX ignores exceptions at some points of tracing. The signal would be lost, and
the program would run on. Therefore `StopRequested.__del__` sends the signal again if the exception is freed before
`report_stop` has handled it. The delay of 10 ms lets the code that ignored the exception return first.
`test_a_signal_is_sent_again_if_its_exception_is_swallowed` in tests/training/test_signals.py checks this.
"""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RESEND_SECONDS = 0.01


def handled_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that stop this program: `STOP_SIGNALS`, without SIGHUP if it is ignored, as under nohup."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP))


def ignore_stop_signals() -> None:
    """Makes this process ignore `STOP_SIGNALS`, which its parent handles.

    A terminal or a scheduler sends them to all processes of a group.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Blocks `STOP_SIGNALS` in this thread, and for good in the threads and processes that start meanwhile.

    So no signal interrupts a process before it calls `ignore_stop_signals`, and no thread handles a signal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # The tracker of multiprocessing ignores SIGINT and SIGTERM, but SIGHUP would end it. It starts here, and keeps
        # SIGHUP blocked. Its start unblocks SIGINT and SIGTERM in this thread.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def stop_signals_deferred() -> Iterator[None]:
    """Handles a stop signal that arrives in the block after it. A second SIGINT or SIGTERM kills the process.

    It is for libraries that turn an exception of a signal handler into a wrong result. In other threads than the main
    one, where Python runs no signal handler, the context does nothing.
    """
    arrived: list[int] = []

    def record(number, _):
        arrived.append(number)
        if number != signal.SIGHUP:
            signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, record) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


def leave_closed_terminal() -> None:
    """Redirects standard output and error to /dev/null if their terminal is closed. Every write to it would fail."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)


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


def exit_at_once(status: int) -> None:
    """Ends a program that a signal has stopped, without the exit handlers of libraries.

    A run that was stopped while XLA compiled has crashed in them, and its status was that of the crash.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def report_stop(request: StopRequested, message: str) -> int:
    """Prints `message` on standard error and returns the exit status of the program, 128 + the number of the signal."""
    request.is_handled = True
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # both a closed terminal and its shell send it
    # The program ends here. Objects and coroutines that are freed early would print warnings.
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    print(message, file=sys.stderr)
    return 128 + request.number

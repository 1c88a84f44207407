"""The signals that ask a program to stop: SIGINT of ctrl-C, SIGTERM of a scheduler, SIGHUP of a closed terminal."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    # The first process of multiprocessing starts this tracker, and then SIGINT and SIGTERM are unblocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_closed_terminal() -> None:
    """Redirects standard output and error to /dev/null if their terminal is closed. Every write to it would fail."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)

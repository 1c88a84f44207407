"""Processes that decode: how they start, and how they end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess

import cv2

from input_pipeline.stop_signals import stop_signals_blocked
from input_pipeline.watchdog import end_if_stuck


@contextlib.contextmanager
def decoding_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of processes that decode. No signal to the whole program interrupts them while they start.

    When the block ends with an exception, such as that of a signal, the processes are killed at once.
    """
    context = _Context()
    with stop_signals_blocked():  # its locks start the tracker of multiprocessing
        pool = ProcessPoolExecutor(workers, context, _start_pool_process)
    try:
        yield pool
    except BaseException:
        for process in context.started:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    def start(self):
        with stop_signals_blocked():
            super().start()


class _Context(SpawnContext):
    """Starts processes of the class `_Process`, which `started` lists."""

    def __init__(self):
        super().__init__()
        self.started: list[_Process] = []

    def Process(self, *arguments, **options):  # noqa: N802, the name that the executor calls
        self.started.append(_Process(*arguments, **options))
        return self.started[-1]


def _start_pool_process() -> None:
    """Prepares a process of a pool.

    The process ignores SIGINT and SIGHUP, which a terminal sends to all processes of a program: the parent answers.
    SIGTERM ends the process, since a pool that has lost a process ends the others by it. The process also ends with its
    parent, even if the parent is killed, and if a decoder hangs.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    cv2.setNumThreads(1)
    follow_parent()
    end_if_stuck()


def follow_parent() -> None:
    """Ends this process, which multiprocessing started, when its parent ends, even if the parent is killed."""

    # PR_SET_PDEATHSIG is not suitable: it signals when the thread that started the worker ends, which may be before the
    # parent does.
    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()

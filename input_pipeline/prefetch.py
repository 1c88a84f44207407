"""Iterators over batches that worker processes decode ahead of the training loop."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import cv2

from input_pipeline import messages
from input_pipeline.errors import DataError
from input_pipeline.host_memory import available_bytes
from input_pipeline.stop_signals import ignore_stop_signals, stop_signals_blocked
from input_pipeline.watchdog import end_if_stuck
from input_pipeline.workers import follow_parent


class Tasks(Protocol):
    """What each batch is made of, by its position. It stays in this process, its elements are pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def batches_in_memory(workers: int, prefetch: int) -> int:
    """Returns how many batches exist at once, in this process and in the workers.

    A worker makes one batch, keeps `prefetch` ready and sends one. This process receives one, keeps one ready and uses
    one.
    """
    return workers * (prefetch + 2) + 3 if workers else 1


def max_batch_bytes(workers: int, prefetch: int) -> float:
    """Returns the maximum size in bytes of a batch, such that all batches fit in half of the available memory."""
    return available_bytes() / 2 / batches_in_memory(workers, prefetch)


def require_memory(batch_bytes: int, workers: int, prefetch: int, field: str = "the batch size") -> None:
    """Checks that the batches of `workers` fit in memory, each of `batch_bytes` bytes. `field` is the batch size.

    Raises:
        DataError: they do not fit.
    """
    count, available = batches_in_memory(workers, prefetch), available_bytes()
    if workers and count * batch_bytes > available:
        raise DataError(
            f"With data.workers={workers} and data.prefetch={prefetch}, {count} batches of {batch_bytes / 2**20:.0f} "
            f"MiB are in memory at once, but {available / 2**20:.0f} MiB are available. Lower data.workers, "
            f"data.prefetch or {field}, or give the container more memory."
        )


class Batches:
    """Iterator over batches, from the first to the last.

    This process decides what each batch is made of, and the workers make it. They need no module that only the order
    and the random numbers need, such as grain, which imports JAX.

    With `workers`, processes start to decode ahead at construction. They end at `close`, when the iterator is deleted,
    and when their parent ends. Workers ignore SIGINT, SIGTERM and SIGHUP, which a terminal or scheduler sends to the
    whole process group. The parent handles these signals.

    Args:
        tasks: what each batch is made of.
        make: function of an element of `tasks` that returns the batch. It is pickled for the workers.
        workers: number of processes. 0: batches are made in this process, on demand.
        prefetch: batches that each worker keeps ready, besides the one that it makes and the one that it sends.

    Raises:
        DataError: on iteration, a worker process ended unexpectedly.
    """

    def __init__(self, tasks: Tasks, make: Callable[[Any], dict], *, workers: int, prefetch: int):
        self._source = _Workers(tasks, make, workers, prefetch) if workers else _Direct(tasks, make)
        self._close = weakref.finalize(self, self._source.close)
        atexit.register(self._close)  # runs before multiprocessing waits for its processes at exit

    def __iter__(self):
        return self

    def __next__(self):
        if not self._close.alive:
            raise ValueError("The iterator over the batches is closed.")
        return next(self._source)

    def close(self):
        """Ends the workers and drops their batches."""
        self._close()
        atexit.unregister(self._close)


class _Direct:
    """Makes each batch on demand."""

    def __init__(self, tasks, make):
        self._batches = (make(tasks[index]) for index in range(len(tasks)))

    def __next__(self):
        return next(self._batches)

    def close(self):
        del self._batches


class _Workers:
    """Batches that worker processes make. Worker w of n makes the batches w, w + n, w + 2n and so on.

    A thread receives them in order, because a training step should not wait for the copy.
    """

    def __init__(self, tasks, make, workers, prefetch):
        start = messages.encode((make, prefetch))
        self._ready, self._stop = queue.Queue(maxsize=1), threading.Event()
        self._workers = []
        self._thread = threading.Thread(
            target=_receive_batches,
            args=(self._workers, start, tasks, workers * (prefetch + 2), self._ready, self._stop),
            name="batches",
            daemon=True,
        )
        with stop_signals_blocked():  # also in the new processes, which would be interrupted while they import
            try:
                for number in range(workers):
                    self._workers.append(_Worker(number))
                self._thread.start()
            except BaseException:
                self.close()
                raise

    def __next__(self):
        batch, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # raised again for every later call
            raise error
        return batch

    def close(self):
        self._stop.set()
        for worker in self._workers:
            worker.kill()  # nothing is lost: workers write no files. The thread notices that they have ended.
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)
        for worker in self._workers:
            worker.close()


class _Worker:
    """A worker process and this end of the socket to it."""

    def __init__(self, number: int):
        self.connection, remote = socket.socketpair()
        with remote:
            self._process = multiprocessing.get_context("spawn").Process(
                target=_make_batches, args=(remote,), name=f"decoding-{number}", daemon=True
            )
            self._process.start()

    def kill(self):
        self._process.kill()

    def close(self):
        self._process.join()
        self.connection.close()

    def exit_error(self) -> DataError:
        """Returns the error that reports the unexpected end of the process."""
        self._process.join(timeout=5)
        status = self._process.exitcode
        cause = f"by {signal.Signals(-status).name}" if status and status < 0 else f"with exit status {status}"
        return DataError(
            f"A decoding process has ended {cause}. If the memory is used up, lower data.workers, data.prefetch or the "
            "batch size. If a video crashes the decoder or hangs, find it with python -m input_pipeline.check, or "
            "decode in this process with data.workers=0."
        )


def _receive_batches(
    workers: list[_Worker], start, tasks: Tasks, ahead: int, ready: queue.Queue, stop: threading.Event
) -> None:
    """Puts pairs of a batch and None into `ready`, in order, and finally a pair of None and an error.

    Args:
        start: the message that each worker gets first.
        ahead: how many tasks the workers have at once, a multiple of their number.
    """
    worker, count, sent = workers[0], len(tasks), 0
    try:
        for worker in workers:
            messages.send(worker.connection, start)
        for index in range(count):
            while sent < min(index + ahead, count):
                worker, last = workers[sent % len(workers)], sent >= count - len(workers)
                messages.send(worker.connection, messages.encode(tasks[sent]))
                if last:  # the worker ends when it has made this batch; one that has died is noticed when receiving
                    with contextlib.suppress(OSError):
                        worker.connection.shutdown(socket.SHUT_WR)
                sent += 1
            worker = workers[index % len(workers)]
            batch = messages.receive(worker.connection)
            if isinstance(batch, Exception):
                raise batch
            ready.put((batch, None))
            if stop.is_set():
                return
        raise StopIteration
    except (EOFError, ConnectionError):
        ready.put((None, worker.exit_error()))
    except BaseException as error:  # StopIteration included: __next__ raises it in the caller's thread
        ready.put((None, error))


def _make_batches(connection: socket.socket) -> None:
    """Runs in a worker: makes batches of the tasks that it receives, and sends them."""
    _start_worker()
    try:
        make, prefetch = messages.receive(connection)
    except (EOFError, ConnectionError):
        return  # the parent has ended
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    made: queue.Queue = queue.Queue(maxsize=prefetch)
    # Tasks are received while a batch is made, so that the parent never waits to send one.
    threading.Thread(target=_receive_tasks, args=(connection, tasks), name="receive", daemon=True).start()
    sender = threading.Thread(target=_send_batches, args=(connection, made), name="send", daemon=True)
    sender.start()
    try:
        while (task := tasks.get()) is not None:
            made.put(make(task))
    except Exception as error:
        made.put(portable(error))
    made.put(None)
    sender.join()


def _receive_tasks(connection, tasks: queue.SimpleQueue) -> None:
    try:
        while True:
            tasks.put(messages.receive(connection))
    except (EOFError, ConnectionError):
        pass  # there are no more
    finally:
        tasks.put(None)


def _send_batches(connection, made: queue.Queue) -> None:
    while (batch := made.get()) is not None:
        try:
            messages.send(connection, messages.encode(batch))
        except ConnectionError:
            os._exit(1)  # the parent has ended


def portable(error: Exception) -> Exception:
    """Returns an exception that can be pickled, with the traceback of `error` as a note."""
    text = "".join(traceback.format_exception(error))
    error.add_note(f"In a decoding process:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


def _start_worker() -> None:
    """Prepares a worker process before its first batch."""
    ignore_stop_signals()
    follow_parent()
    # The accelerators belong to the parent. Workers have no need of JAX, but the module that started the program, which
    # they import, may import it. Then it has read the environment, and only its config can change the platform.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    cv2.setNumThreads(0)
    end_if_stuck()

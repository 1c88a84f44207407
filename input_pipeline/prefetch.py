"""Processes that decode ahead, and their end."""

import contextlib
import math
import os
import queue
import signal
import sys
import threading
import weakref

import cv2
import grain
import numpy as np
from absl import flags

from input_pipeline.decode import end_if_stuck
from input_pipeline.errors import DataError
from input_pipeline.workers import follow_parent


def max_batch_bytes(workers: int, prefetch: int) -> float:
    """Bytes that a batch may have, so that those that workers keep ready, and as many on their way, take half of the
    shared memory that is free."""
    kept = workers * (2 * prefetch + 1)
    if not kept or not os.path.isdir("/dev/shm"):
        return math.inf
    shared = os.statvfs("/dev/shm")
    return shared.f_bavail * shared.f_frsize / 2 / kept


class Batches:
    """Iterator over the batches of a grain data set, which works ahead in `workers` processes from the start.

    `close` ends the processes, as does the end of the program. A worker outlives neither the iterator nor
    its parent, and leaves to its parent what an interrupt or a termination of the process group means. The iterator
    raises DataError when a worker has ended before.
    """

    def __init__(self, dataset: grain.MapDataset, *, workers: int, prefetch: int):
        if not flags.FLAGS.is_parsed():  # grain reads flags that no one but an absl program parses
            flags.FLAGS.mark_as_parsed()
        # No threads within a process: they would read batches by the dozen, each of many megabytes.
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
        iterator = iter(dataset)
        if workers:
            iterator.get_state()  # makes the iterators that start_prefetch starts
            with _signals_blocked():
                iterator.start_prefetch()
        self._source = _Ahead(iterator) if workers else _Now(iterator)
        self._close = weakref.finalize(self, self._source.close)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._close.alive:
            raise ValueError("The iterator over the batches is closed.")
        try:
            return next(self._source)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                "A decoding process has ended, by a video that hangs or a lack of memory; python -m "
                "input_pipeline.check finds such videos, data.workers=0 decodes in this process."
            ) from error

    def close(self):
        """Ends the workers and drops what they had ready. Waits for a batch that is in the making."""
        self._close()


class _Now:
    """Makes each batch when it is asked for."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self):
        return next(self._iterator)

    def close(self):
        # Given up as well as closed: grain closes again what the interpreter's end deletes, and by then its own
        # modules are gone.
        self._iterator.close()
        del self._iterator


class _Ahead:
    """Takes batches over from the workers in a thread: to copy one takes longer than many a step may wait."""

    def __init__(self, iterator):
        self._iterator, self._ready, self._stop = iterator, queue.Queue(maxsize=1), threading.Event()
        self._thread = threading.Thread(
            target=_take_over, args=(iterator, self._ready, self._stop), name="batches", daemon=True
        )
        with _signals_blocked():
            self._thread.start()

    def __next__(self):
        batch, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # so it is for those who ask again
            raise error
        return batch

    def close(self):
        self._stop.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)
        self._iterator.close()
        del self._iterator  # as of _Now


def _take_over(iterator, ready, stop):
    while not stop.is_set():
        try:
            # Copied out of shared memory, which would leak if the program ended while it held a batch.
            ready.put(({key: np.array(value) for key, value in next(iterator).items()}, None))
        except BaseException as error:  # StopIteration among them: it is raised where the batch is asked for
            ready.put((None, error))
            return


@contextlib.contextmanager
def _signals_blocked():
    """Threads and processes started inside inherit the block: no worker is interrupted while it imports."""
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index, count):
    """Runs in each worker before its first batch."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    follow_parent()
    # The accelerators belong to the parent. grain may have imported jax already: then its settings are read.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    cv2.setNumThreads(0)
    end_if_stuck()

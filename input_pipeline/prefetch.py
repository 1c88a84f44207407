"""Iterators over batches that worker processes decode ahead of the training loop."""

import contextlib
import math
import os
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from absl import flags

from input_pipeline.errors import DataError
from input_pipeline.watchdog import end_if_stuck
from input_pipeline.workers import follow_parent


def max_batch_bytes(workers: int, prefetch: int) -> float:
    """Returns the maximum size in bytes of a batch, such that the prefetched batches fit in half of the shared memory.

    Only free shared memory counts. Each worker keeps `prefetch` batches ready, grain holds the same number again in
    transit, and the worker makes one more.
    """
    batches = workers * (2 * prefetch + 1)
    if not batches or not os.path.isdir("/dev/shm"):
        return math.inf
    shared_memory = os.statvfs("/dev/shm")
    return shared_memory.f_bavail * shared_memory.f_frsize / 2 / batches


class Batches:
    """Iterator over the batches of a grain data set.

    With `workers`, processes start to decode ahead at construction. They end at `close`, when the iterator is deleted,
    and when their parent ends. Workers ignore SIGINT and SIGTERM, which a terminal or scheduler sends to the whole
    process group. The parent handles these signals.

    Raises:
        DataError: on iteration, a worker process ended unexpectedly.
    """

    def __init__(self, dataset: grain.MapDataset, *, workers: int, prefetch: int):
        if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only an absl program parses
            flags.FLAGS.mark_as_parsed()
        # No threads within a process: each thread would prefetch dozens of batches of many megabytes.
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
        iterator = iter(dataset)
        if workers:
            iterator.get_state()  # creates the iterators that start_prefetch starts
            with _signals_blocked():
                iterator.start_prefetch()
        self._source = _BackgroundCopy(iterator) if workers else _Direct(iterator)
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
                "A decoding process has ended, because a video hangs or the memory is used up. Find such videos with "
                "python -m input_pipeline.check, or decode in this process with data.workers=0."
            ) from error

    def close(self):
        """Ends the workers and drops their prefetched batches. Waits for a batch that is being made."""
        self._close()


class _Direct:
    """Makes each batch on demand."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self):
        return next(self._iterator)

    def close(self):
        # The reference is dropped as well: grain closes its iterator again on deletion. If the interpreter deletes the
        # iterator at exit, the modules of grain are already unloaded.
        self._iterator.close()
        del self._iterator


class _BackgroundCopy:
    """Copies batches out of shared memory in a thread, because a training step should not wait for the copy."""

    def __init__(self, iterator):
        self._iterator, self._ready, self._stop = iterator, queue.Queue(maxsize=1), threading.Event()
        self._thread = threading.Thread(
            target=_copy_batches, args=(iterator, self._ready, self._stop), name="batches", daemon=True
        )
        with _signals_blocked():
            self._thread.start()

    def __next__(self):
        batch, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # raised again for every later call
            raise error
        return batch

    def close(self):
        self._stop.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)
        self._iterator.close()
        del self._iterator  # for the reason given in _Direct.close


def _copy_batches(iterator, ready: queue.Queue, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            # Batches are copied out of shared memory. It would leak if the program ended while it held a batch there.
            ready.put(({key: np.array(value) for key, value in next(iterator).items()}, None))
        except BaseException as error:  # StopIteration included: __next__ raises it in the caller's thread
            ready.put((None, error))
            return


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM, also in new threads and processes, so no worker is interrupted while importing."""
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index, count):
    """Prepares a worker process of grain before its first batch."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    follow_parent()
    # The accelerators belong to the parent. grain imports jax for its profiler, so jax may have read the environment
    # already. Then only the config of jax can change the platform.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    cv2.setNumThreads(0)
    end_if_stuck()

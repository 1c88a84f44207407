"""The speed of training, and the time that each phase of a run takes."""

import time
from contextlib import contextmanager

import jax


class PhaseTimer:
    """Measures the phases of a run. `seconds` is {phase: seconds}, ordered by the first end of each phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str):
        """Adds the time spent inside this context to `phase`, except the time of other phases measured inside it."""
        start, inner_before = time.perf_counter(), sum(self.seconds.values())
        yield
        inner = sum(self.seconds.values()) - inner_before
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start - inner


class Throughput:
    """Measures clips and decoded frames per second, and the share of time spent waiting for data.

    Args:
        batch_size: clips per step, over all processes.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._restart()

    def _restart(self) -> None:
        self._steps, self._frames, self._waited, self._start = 0, 0, 0.0, time.perf_counter()

    def next_batch(self, batches) -> dict:
        """Returns the next batch of this process, and measures how long it took to arrive."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        self._steps += 1
        self._frames += int(batch["decoded"].sum())
        return batch

    def pop_rates(self) -> dict:
        """Returns the rates since the last log line, and starts the next measurement."""
        seconds = time.perf_counter() - self._start
        rates = {
            "train/clips_per_second": self._steps * self.batch_size / seconds,
            "train/frames_per_second": self._frames * jax.process_count() / seconds,
            "train/data_wait": self._waited / seconds,
        }
        self._restart()
        return rates

    @contextmanager
    def paused(self):
        """Excludes the time spent inside this context, on evaluation and saving, from the measurement."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

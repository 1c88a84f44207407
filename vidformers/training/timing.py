"""The speed of training, and the time that each phase of a run takes."""

import time
from contextlib import contextmanager

import jax
from jax.sharding import Mesh

from vidformers.models.summary import TRAINING_OPERATIONS, summarise
from vidformers.parallel.peak import peak_flops


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


def peak_seconds_per_clip(make_model, mesh: Mesh, peak_tflops: float | None) -> float | None:
    """Returns the seconds that the products of training on one clip would take at the peak of all devices.

    The products are the multiply-adds of `--mode=summary`, three times. Returns None if the peak is unknown; the model
    is then not traced.

    Args:
        make_model: function of `rngs` that builds the model.
        mesh: the mesh of the run, with devices of one kind.
        peak_tflops: 1e12 floating-point operations per second of one device, or None for the published bfloat16 peak.
    """
    peak = peak_flops(mesh.devices.flat[0]) if peak_tflops is None else 1e12 * peak_tflops
    if peak is None:
        return None
    return TRAINING_OPERATIONS * summarise(make_model).macs_per_view / (peak * mesh.size)


class Throughput:
    """Measures clips and decoded frames per second, and the share of time spent waiting for data.

    Args:
        batch_size: clips per step, over all processes.
        peak_seconds: the result of `peak_seconds_per_clip`. Unless it is None, the rates include `train/mfu`, the model
            FLOPs utilisation: the time of the model's products at the peak of the devices over the time of the steps.
    """

    def __init__(self, batch_size: int, peak_seconds: float | None = None):
        self.batch_size, self._peak_seconds = batch_size, peak_seconds
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
        if self._peak_seconds is not None:
            rates["train/mfu"] = rates["train/clips_per_second"] * self._peak_seconds
        self._restart()
        return rates

    @contextmanager
    def paused(self):
        """Excludes the time spent inside this context, on evaluation and saving, from the measurement."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

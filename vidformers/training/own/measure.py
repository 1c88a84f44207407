"""Measurements on this machine: the time to decode a clip, and the time of a training step."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from input_pipeline import Pipeline
from input_pipeline.host_memory import available_bytes
from vidformers.models.registry import build
from vidformers.models.summary import TRAINING_OPERATIONS, summarise
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch, put_batch
from vidformers.parallel.state import convert_layers
from vidformers.training.setup import Setup, compile_step, initialise, set_up

_MEMORY_SHARE = 0.85  # of a device that a step may take; evaluation and the allocator need the rest
_HOST_SHARE = 0.5  # of the available memory, if the devices are the cores of the machine
_CLIPS, _STEPS = 12, 30  # at most


class Decoding(NamedTuple):
    """Seconds of one core: to open a video and decode the frames of a clip, and to crop and augment them."""

    decode: float
    augment: float


class StepTime(NamedTuple):
    """Seconds of a training step, and seconds from the config to the end of the first step."""

    step: float
    start: float


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_cpu() -> bool:
    """Returns whether the devices are the cores of the machine, on which the workers decode as well."""
    return jax.local_devices()[0].platform == "cpu"


def training_macs(model: dict[str, Any], clips: int) -> float:
    """Returns the multiply-adds of a training step on `clips` clips: forward and backward pass.

    Args:
        model: the section `model` of a config.
        clips: clips of the step.
    """
    macs = summarise(lambda rngs: build(rngs=rngs, **model)).macs_per_view
    return macs * clips * TRAINING_OPERATIONS / 2


def measure_decoding(pipeline: Pipeline, seed: int, seconds: float) -> Decoding:
    """Decodes some training videos in this process and augments their clips.

    Args:
        pipeline: the data.
        seed: the seed of the run: its first videos are decoded.
        seconds: time after which no further video is decoded. Two are always.
    """
    with ExitStack() as stack:
        single, fourfold = (
            stack.enter_context(closing(alone.train_batches(batch_size=alone.repeats, seed=seed)))
            for alone in (replace(pipeline, workers=0, repeats=repeats) for repeats in (1, 4))
        )
        next(single), next(fourfold)  # the first ones open libraries
        start, times = time.perf_counter(), list[tuple[float, float]]()
        while len(times) < 2 or len(times) < _CLIPS and time.perf_counter() - start < seconds:
            times.append((_seconds(single), _seconds(fourfold)))
    # The same frames give 1 and 4 clips of a video, so that the difference is the time of augmentation. Its median is
    # used, because other programs may disturb single videos.
    once = float(np.mean([one for one, _ in times]))
    augment = min(max(float(np.median([four - one for one, four in times])) / 3, 0.0), once)
    return Decoding(once - augment, augment)


def _seconds(batches: Iterator) -> float:
    """Returns the seconds that the next batch takes."""
    before = time.perf_counter()
    next(batches)
    return time.perf_counter() - before


class Probe:
    """A compiled training step with a state of its own. Nothing is written.

    Attributes:
        times: the times of the step on clips without content.

    Args:
        setup: the set-up of the run.
        step: the compiled step.
        started: when the set-up began, by `time.perf_counter`.
        seconds: time after which no further step is run. One is always.
    """

    def __init__(self, setup: Setup, step: jax.stages.Compiled, started: float, seconds: float):
        self._setup, self._step = setup, step
        self._state = convert_layers(initialise(setup), setup.step_abstract)
        data = setup.config["data"]
        video = (setup.train_config.batch_size, data["frames"], data["size"], data["size"], 3)
        shapes = abstract_batch(setup.mesh, video, multi_hot=setup.pipeline.multi_hot)
        clips = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        clips["label"] = np.zeros_like(clips["label"])
        self._run(clips)  # the first step loads the program
        start, times = time.perf_counter() - started, list[float]()
        while not times or len(times) < _STEPS and sum(times) < seconds:
            times.append(self._run(clips))
        self.times = StepTime(float(np.median(times)), start)  # the median: other programs may disturb single steps

    def _run(self, batch: dict[str, np.ndarray]) -> float:
        before = time.perf_counter()
        self._state, metrics = self._step(self._state, put_batch(self._setup.mesh, batch))
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - before

    def seconds_with_data(self, pipeline: Pipeline, seconds: float) -> float:
        """Returns the seconds of a step on clips of the data, which the workers make meanwhile.

        Steps and workers on the same cores slow each other down, and this shows only if both run.

        Args:
            pipeline: the data.
            seconds: time after which no further step is run. Three are always.
        """
        config = self._setup.train_config
        with closing(pipeline.train_batches(batch_size=config.batch_size, seed=self._setup.config["seed"])) as batches:
            self._run(next(batches))  # waits for the start of the workers
            ends = [time.perf_counter()]
            while len(ends) < 4 or ends[-1] - ends[0] < seconds:
                self._run(next(batches))
                ends.append(time.perf_counter())
        first = min(pipeline.workers * pipeline.prefetch, len(ends) // 2)  # the batches before may have been ready
        return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


def probe(config: dict[str, Any], clips_per_epoch: int, seconds: float) -> Probe | None:
    """Compiles the training step of a config and measures it.

    Args:
        config: the config as nested dicts.
        clips_per_epoch: the length of an epoch.
        seconds: see `Probe`.
    Returns:
        The probe, or None if the step does not fit in memory.
    Raises:
        ConfigError: the config cannot work.
    """
    started = time.perf_counter()
    setup = set_up(config, clips_per_epoch=clips_per_epoch)
    try:
        step, _ = memory.compile_within(_bytes_for_a_step(), lambda: compile_step(setup))
        return None if step is None else Probe(setup, step, started, seconds)
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        return None


def _bytes_for_a_step() -> float:
    limit = _MEMORY_SHARE * memory.bytes_available()
    return min(limit, _HOST_SHARE * available_bytes()) if is_cpu() else limit

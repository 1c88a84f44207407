"""Common parts of the benchmarks: steps of a model without data, and the report with device and versions."""

import ctypes.util
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers import build
from vidformers.models.fuse import fuse_projections
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh
from vidformers.parallel.state import convert_layers
from vidformers.training.optim import make_optimizer
from vidformers.training.setup import abstract_state, step_state, trace_step
from vidformers.training.step import initial_state, make_step

# Environment of a malloc that keeps freed memory: jemalloc, or glibc's malloc where jemalloc is not installed.
_JEMALLOC = ctypes.util.find_library("jemalloc")
_KEEP = (
    {"LD_PRELOAD": _JEMALLOC, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    if _JEMALLOC
    else {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.arena_max=1:"
        "glibc.malloc.top_pad=1000000000"
    }
)


def keep_memory() -> None:
    """Restarts this program under a malloc that returns no memory to the system. Child processes inherit it.

    A virtual machine may give freed pages to its host while another program has its turn, and fault them in again one
    by one. This costs the program with the larger buffers seconds a step. jemalloc also finds free memory faster than
    glibc; PyTorch's guide to tuning on CPUs recommends it, too.
    """
    if any(os.environ.get(name) != value for name, value in _KEEP.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | _KEEP)


def simulate(devices: int) -> None:
    """Makes JAX use `devices` simulated CPU devices and no accelerator. Call it before JAX initialises its devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


class LoweredStep:
    """A training step (cross-entropy, AdamW) of one model at its published size, lowered for a batch on a mesh.

    Attributes:
        abstract: the state as shapes, types and shardings, with stacked layers.
        step_abstract: the state as the step takes it.
        batch: the batch as shapes, types and shardings.
        init: function that returns the initial state.
        lowered: the lowered step.
    """

    def __init__(self, model: dict, rows: int, mesh, in_backward: bool = False):
        make_model = partial(build, **{"num_classes": 400, **model})
        optimizer, rate = make_optimizer(1000, 1000, lr=1e-4, schedule="constant")
        graph, self.abstract = abstract_state(make_model, optimizer, None, mesh)
        self.init = partial(initial_state, make_model, optimizer, None, 0)
        self.batch = abstract_batch(mesh, (rows, *nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))).shape))
        step = make_step(graph, optimizer, rate, seed=0, in_backward=in_backward)
        self.step_abstract = self.abstract if in_backward else step_state(graph, self.abstract, mesh)
        self.lowered = trace_step(step, mesh, self.step_abstract, self.batch).lower()


class TrainingStep(LoweredStep):
    """A training step on one device, compiled on construction."""

    def __init__(self, name: str, batch: int, in_backward: bool = False, **options):
        started = time.perf_counter()
        super().__init__({"name": name, **options}, batch, make_mesh(devices=jax.devices()[:1]), in_backward)
        self.compiled = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes
        self.state = None

    def __call__(self) -> float:
        """Runs one step. Returns its seconds."""
        if self.state is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
            self.state = convert_layers(jax.jit(self.init, out_shardings=shardings)(), self.step_abstract)
            rng = np.random.default_rng(0)
            shapes = {name: leaf.shape for name, leaf in self.batch.items()}
            self.rows = jax.device_put(
                {
                    "video": rng.integers(0, 256, shapes["video"], np.uint8),
                    "index": np.zeros(shapes["index"], np.int32),
                    "label": rng.integers(0, 400, shapes["label"], np.int32),
                    "mask": np.ones(shapes["mask"], np.float32),
                }
            )
            jax.block_until_ready(self.state)
        started = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.rows)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started


class ForwardStep:
    """The forward pass of one model at its published size, compiled on construction, as `TrainingStep` is."""

    def __init__(self, name: str, batch: int, **options):
        make_model = partial(build, name, **{"num_classes": 400, **options})
        model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
        graph = nnx.split(model)[0]
        self.init = lambda: nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(0))))
        self.video = jax.ShapeDtypeStruct((batch, *model.shape), jnp.uint8)
        started = time.perf_counter()
        step = jax.jit(lambda parameters, video: fuse_projections(nnx.merge(graph, parameters))(video))
        self.compiled = step.lower(jax.eval_shape(self.init), self.video).compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes
        self.state = None

    def __call__(self) -> float:
        """Runs one forward pass. Returns its seconds."""
        if self.state is None:
            self.state = jax.block_until_ready(jax.jit(self.init)())
            self.batch = jax.device_put(np.random.default_rng(0).integers(0, 256, self.video.shape, np.uint8))
        started = time.perf_counter()
        jax.block_until_ready(self.compiled(self.state, self.batch))
        return time.perf_counter() - started


def timed(kind, name: str, batch: int, steps: int, **options) -> tuple[TrainingStep | ForwardStep, dict] | None:
    """Returns a step and its measurements, or None if it does not fit in memory.

    Args:
        kind: `TrainingStep` or `ForwardStep`.
        name, batch, **options: its arguments.
        steps: steps whose median is the rate. With 0, the step is compiled only and the rate is None.
    """
    try:
        step, rate = kind(name, batch, **options), None
        if steps:
            step()
            rate = batch / statistics.median(step() for _ in range(steps))
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        return None
    return step, dict(
        batch=batch,
        clips_per_second=rate,
        temporary_mib=step.temporary_bytes / 2**20,
        compile_seconds=step.compile_seconds,
    )


def processor() -> str:
    """Returns the name, family and model of the CPU: virtual machines may give different CPUs the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return ", ".join(
        [
            fields.get("model name", platform.machine()),
            *(f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields),
        ]
    )


def versions() -> dict[str, str]:
    """Returns the versions of JAX and of the compilers that are installed."""
    names = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "nvidia-cudnn-cu12")
    installed = {name: next(importlib.metadata.distributions(name=name), None) for name in names}
    return {name: found.version for name, found in installed.items() if found is not None}


def report(**metrics) -> None:
    """Prints one JSON line: the metrics, and the device, versions and date of the measurement."""
    print(
        json.dumps(
            metrics
            | {
                "device": jax.devices()[0].device_kind,
                "processor": processor(),
                "cores": os.cpu_count(),
                "malloc": "jemalloc" if "jemalloc" in os.environ.get("LD_PRELOAD", "") else "glibc",
                "date": datetime.date.today().isoformat(),
                "versions": versions(),
            }
        ),
        flush=True,
    )

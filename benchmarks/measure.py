"""What the benchmarks share: a model's training step without data, and the account of where it was measured."""

import ctypes.util
import datetime
import importlib.metadata
import json
import os
import platform
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
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh
from vidformers.training.optim import make_optimizer
from vidformers.training.setup import abstract_state, lower_step
from vidformers.training.step import initial_state, make_step

# jemalloc, or where it is not installed glibc's malloc, told to keep what is freed.
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
    """Starts this program again under a malloc that gives nothing back; the programs it starts inherit that.

    A virtual machine may hand freed pages to its host while another program has its turn, and fault them in again one
    by one: seconds a step for the program with the larger buffers, and none of its own doing. jemalloc, which PyTorch's
    guide to tuning on CPUs advises too, also finds free memory sooner than glibc.
    """
    if any(os.environ.get(name) != value for name, value in _KEEP.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | _KEEP)


def simulate(devices: int) -> None:
    """Makes of this machine's CPU so many devices, whatever accelerator it has; before JAX looks for any."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


class LoweredStep:
    """AdamW on cross-entropy of one model at its published size, lowered for `rows` clips on a mesh.

    `abstract` and `batch` are its state and its batch by shape, type and sharding; `init` makes the state.
    """

    def __init__(self, model: dict, rows: int, mesh, in_backward: bool = False):
        make_model = partial(build, **{"num_classes": 400, **model})
        optimizer, rate = make_optimizer(1000, 1000, lr=1e-4, schedule="constant")
        graph, self.abstract = abstract_state(make_model, optimizer, None, mesh)
        self.init = partial(initial_state, make_model, optimizer, None, 0)
        self.batch = abstract_batch(mesh, (rows, *nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))).shape))
        step = make_step(graph, optimizer, rate, seed=0, in_backward=in_backward)
        self.lowered = lower_step(step, mesh, self.abstract, self.batch)


class TrainingStep(LoweredStep):
    """That of one device; compiled on construction."""

    def __init__(self, name: str, batch: int, in_backward: bool = False, **options):
        started = time.perf_counter()
        super().__init__({"name": name, **options}, batch, make_mesh(devices=jax.devices()[:1]), in_backward)
        self.compiled = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes
        self.state = None

    def __call__(self) -> float:
        """Seconds of one step."""
        if self.state is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
            self.state = jax.jit(self.init, out_shardings=shardings)()
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
        self.state, figures = self.compiled(self.state, self.rows)
        jax.block_until_ready((self.state, figures))
        return time.perf_counter() - started


class ForwardStep:
    """The logits of one model at its published size; compiled on construction, with what `TrainingStep` says of it."""

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
        """Seconds of one pass."""
        if self.state is None:
            self.state = jax.block_until_ready(jax.jit(self.init)())
            self.batch = jax.device_put(np.random.default_rng(0).integers(0, 256, self.video.shape, np.uint8))
        started = time.perf_counter()
        jax.block_until_ready(self.compiled(self.state, self.batch))
        return time.perf_counter() - started


def processor() -> str:
    """The CPU's name, with family and model, since virtual machines may call unlike ones alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return ", ".join(
        [
            said.get("model name", platform.machine()),
            *(f"{name} {said[name]}" for name in ("cpu family", "model") if name in said),
        ]
    )


def report(**figures) -> None:
    """Prints one JSON line: the figures, and the device, versions and date they belong to."""
    print(
        json.dumps(
            figures
            | {
                "device": jax.devices()[0].device_kind,
                "processor": processor(),
                "cores": os.cpu_count(),
                "malloc": "jemalloc" if "jemalloc" in os.environ.get("LD_PRELOAD", "") else "glibc",
                "date": datetime.date.today().isoformat(),
                "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            }
        )
    )

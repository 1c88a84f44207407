"""What the benchmarks share: a model's training step without data, and the account of where it was measured."""

import datetime
import importlib.metadata
import json
import os
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers import build
from vidformers.optim import make_optimizer
from vidformers.step import initial_state, make_step

# glibc's malloc, told to keep what is freed.
_KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.arena_max=1:" \
        "glibc.malloc.top_pad=1000000000"


def keep_memory() -> None:
    """Starts this program again under a malloc that gives nothing back; the programs it starts inherit that.

    A virtual machine may hand freed pages to its host while another program has its turn, and fault them in again one
    by one: seconds a step for the program with the larger buffers, and none of its own doing.
    """
    if os.environ.get("GLIBC_TUNABLES") != _KEEP:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": _KEEP})


class TrainingStep:
    """AdamW on cross-entropy of one model at its published size; compiled on construction."""

    def __init__(self, name: str, batch: int, **options):
        make_model = partial(build, name, **{"num_classes": 400, **options})
        optimizer, rate = make_optimizer(1000, 1000, lr=1e-4, schedule="constant")
        model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
        self.init = partial(initial_state, make_model, optimizer, None, 0)
        step = jax.jit(make_step(nnx.split(model)[0], optimizer, rate, seed=0), donate_argnums=0)
        self.shapes = {"video": jax.ShapeDtypeStruct((batch, *model.shape), jnp.uint8),
                       "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
                       "mask": jax.ShapeDtypeStruct((batch,), jnp.float32)}
        started = time.perf_counter()
        lowered = step.lower(jax.eval_shape(self.init), self.shapes)
        self.trace_seconds = time.perf_counter() - started
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes
        self.state = None

    def __call__(self) -> float:
        """Seconds of one step."""
        if self.state is None:
            rng = np.random.default_rng(0)
            self.state = jax.jit(self.init)()
            self.batch = jax.device_put({"video": rng.integers(0, 256, self.shapes["video"].shape, np.uint8),
                                         "label": rng.integers(0, 400, self.shapes["label"].shape, np.int32),
                                         "mask": np.ones(self.shapes["mask"].shape, np.float32)})
            jax.block_until_ready(self.state)
        started = time.perf_counter()
        self.state, figures = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, figures))
        return time.perf_counter() - started


def report(**figures) -> None:
    """Prints one JSON line: the figures, and the device, versions and date they belong to."""
    print(json.dumps(figures | {
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}}))

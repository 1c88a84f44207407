"""Compares the backends of softmax attention on groups as large as those of the base models.

Command: python -m benchmarks.attention [--batch=1] [--rounds=9] [--dtype=float32]

The backends take turns. Prints one JSON line for each scheme: median seconds of forward, and of forward and backward,
for each backend that this machine supports, or null where memory is exhausted. `model.backend=auto` is chosen from
these results.
"""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report
from vidformers.attention.core import compute_attention
from vidformers.attention.fused import BACKENDS, check_backend, softmax_kernel
from vidformers.errors import ConfigError

HEADS, WIDTH = 12, 64
GROUPS = {"frame": (8, 197, 197), "time": (196, 9, 9), "motion, M=2": (49, 33, 33), "joint": (1, 1569, 1569)}
GROUPS |= {"joint, 32 frames": (1, 6273, 6273)}  # (groups of a clip, queries of a group, keys of a group)


def time_call(run, *arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - started


def main():
    args = parse(__doc__, batch=1, rounds=9, dtype="float32")
    keep_memory()
    backends = []
    for backend in BACKENDS[1:]:
        try:
            check_backend(backend, "softmax", jnp.dtype(args.dtype), WIDTH)
            backends.append(backend)
        except ConfigError as error:
            print(f"Skipped {backend}: {error}")
    for scheme, (groups, queries, keys) in GROUPS.items():
        rng = np.random.default_rng(0)
        q, k, v, g = (
            jnp.asarray(rng.normal(size=(args.batch, groups, n, HEADS, WIDTH)), args.dtype)
            for n in (queries, keys, keys, queries)
        )
        runs, seconds, out_of_memory = {}, {}, set()
        for backend in backends:
            forward = partial(compute_attention, kernel=softmax_kernel(backend))
            runs[backend, "forward"] = jax.jit(forward), (q, k, v)
            runs[backend, "both"] = (
                jax.jit(lambda q, k, v, g, forward=forward: jax.vjp(forward, q, k, v)[1](g)),
                (q, k, v, g),
            )
        for _ in range(1 + args.rounds):
            for name, (run, arguments) in runs.items():
                if name not in out_of_memory:
                    try:
                        seconds.setdefault(name, []).append(time_call(run, *arguments))
                    except jax.errors.JaxRuntimeError as error:
                        if "RESOURCE_EXHAUSTED" not in str(error):
                            raise
                        out_of_memory.add(name)
        report(
            benchmark="attention",
            scheme=scheme,
            groups=groups,
            queries=queries,
            keys=keys,
            batch=args.batch,
            dtype=args.dtype,
            seconds={
                backend: {
                    pass_: None if (backend, pass_) in out_of_memory else statistics.median(seconds[backend, pass_][1:])
                    for pass_ in ("forward", "both")
                }
                for backend in backends
            },
        )


if __name__ == "__main__":
    main()

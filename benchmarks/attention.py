"""Compares the backends of softmax attention on groups as large as those of the base models.

Command: python -m benchmarks.attention [--batch=1] [--rounds=9] [--dtype=float32] [--only=SCHEME;SCHEME] [--minutes=0]

The backends take turns. Prints one JSON line for each scheme: median seconds of forward, and of forward and backward,
for each backend, or null where memory is exhausted. `skipped_backends` says why a backend cannot run, or that einsums
replace it (see `vidformers.attention.fused`). After --minutes,
if it is not 0, the other schemes are skipped. `model.backend=auto` is chosen from these results.
"""

import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report
from input_pipeline.text import one_line
from vidformers.attention.core import compute_attention
from vidformers.attention.fused import BACKENDS, attention_kernel, check_backend, record_backends
from vidformers.errors import ConfigError, require
from vidformers.parallel import memory

HEADS, WIDTH = 12, 64
GROUPS = {"frame": (8, 197, 197), "time": (196, 9, 9), "motion, M=2": (49, 33, 33), "joint": (1, 1569, 1569)}
GROUPS |= {"joint, 32 frames": (1, 6273, 6273)}  # (groups of a clip, queries of a group, keys of a group)


def time_call(run, *arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - started


def compile_passes(backend: str, q, k, v, g) -> dict:
    """Returns the compiled forward pass of a backend, and that of forward and backward, with their arguments.

    Raises:
        ConfigError: the backend does not support the type of q or the device, or einsums replace it.
        jax.errors.JaxRuntimeError: the compiler fails.
    """
    check_backend(backend, "softmax", q.dtype, WIDTH)
    forward = partial(compute_attention, kernel=attention_kernel("softmax", backend))
    both = jax.jit(lambda q, k, v, g: jax.vjp(forward, q, k, v)[1](g))
    passes = {"forward": (jax.jit(forward), (q, k, v)), "both": (both, (q, k, v, g))}
    with record_backends() as found:
        lowered = {name: run.lower(*arguments) for name, (run, arguments) in passes.items()}
    others = sorted(set(found.values()) - {backend})
    require(not others, f"{backend} does not support this attention: {', '.join(others)} replaces it.")
    return {name: (program.compile(), passes[name][1]) for name, program in lowered.items()}


def measure(scheme: str, batch: int, rounds: int, dtype: str) -> None:
    """Prints the JSON line of one scheme."""
    groups, queries, keys = GROUPS[scheme]
    rng = np.random.default_rng(0)
    q, k, v, g = (
        jnp.asarray(rng.normal(size=(batch, groups, n, HEADS, WIDTH)), dtype) for n in (queries, keys, keys, queries)
    )
    runs, seconds, skipped = {}, {}, {}
    for backend in BACKENDS[1:]:
        try:
            passes = compile_passes(backend, q, k, v, g)
            runs |= {(backend, name): call for name, call in passes.items()}
        except (ConfigError, NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
            skipped[backend] = one_line(error)
    out_of_memory = set()
    for _ in range(1 + rounds):
        for name, (run, arguments) in runs.items():
            if name not in out_of_memory:
                try:
                    seconds.setdefault(name, []).append(time_call(run, *arguments))
                except jax.errors.JaxRuntimeError as error:
                    if not memory.is_out_of_memory(error):
                        raise
                    out_of_memory.add(name)
    medians = {backend: {} for backend, _ in runs}
    for backend, name in runs:
        is_measured = (backend, name) not in out_of_memory
        medians[backend][name] = statistics.median(seconds[backend, name][1:]) if is_measured else None
    report(
        benchmark="attention",
        scheme=scheme,
        groups=groups,
        queries=queries,
        keys=keys,
        batch=batch,
        dtype=dtype,
        seconds=medians,
        skipped_backends=skipped,
    )


def main():
    args = parse(__doc__, batch=1, rounds=9, dtype="float32", only=";".join(GROUPS), minutes=0.0)
    keep_memory()
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    for scheme in args.only.split(";"):
        if deadline is not None and time.monotonic() >= deadline:
            print(json.dumps(dict(benchmark="attention", scheme=scheme, skipped="The time was over.")), flush=True)
        else:
            measure(scheme, args.batch, args.rounds, args.dtype)


if __name__ == "__main__":
    main()

"""Inference time of HaViT-S/16 with joint, linear, cosine and divided internal attention, measured in turns.

Command: python -m benchmarks.inference [--frames=8] [--batch=1] [--rounds=7] [--dtype=float32]

HaViT reports that linear attention is about 5 times, and divided attention about 3 times, as fast as joint attention.
Prints one JSON line with the median seconds of each, and their ratios to joint attention.
"""

import statistics
import time
from functools import partial

import jax
import numpy as np
from flax import nnx

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report
from vidformers import build

ATTENTIONS = {
    "joint": dict(attention="joint"),
    "linear": dict(attention="joint", kernel="relu"),
    "cosine": dict(attention="joint", kernel="cosine"),
    "divided": dict(attention="divided"),
}


def timed_forward(video, **options):
    """Returns a function that runs the model once and returns its seconds."""
    make_model = partial(build, "havit", num_classes=400, size="S", frames=video.shape[1], dictionary=112, **options)
    graph = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))[0]
    parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(0)))))()
    compiled = jax.jit(lambda p, x: nnx.merge(graph, p)(x)).lower(parameters, video).compile()

    def run():
        started = time.perf_counter()
        jax.block_until_ready(compiled(parameters, video))
        return time.perf_counter() - started

    run()
    return run


def main():
    args = parse(__doc__, frames=8, batch=1, rounds=7, dtype="float32")
    keep_memory()
    video = jax.device_put(np.zeros((args.batch, args.frames, 224, 224, 3), np.uint8))
    runs = {name: timed_forward(video, dtype=args.dtype, **options) for name, options in ATTENTIONS.items()}
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report(
        benchmark="inference",
        frames=args.frames,
        batch=args.batch,
        dtype=args.dtype,
        rounds=args.rounds,
        seconds=medians,
        faster_than_joint={name: medians["joint"] / median for name, median in medians.items()},
    )


if __name__ == "__main__":
    main()

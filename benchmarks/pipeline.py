"""Clips per second of the input pipeline alone, and of the training step alone.

Command: python -m benchmarks.pipeline [--config=configs/demo.py] [--batches=60]
First the pipeline has the machine to itself, then the training step. Prints one JSON line with both rates and their
ratio.
"""

import time

import jax
import numpy as np

from benchmarks.arguments import parse
from benchmarks.measure import report
from configs.loading import load
from vidformers.parallel.batch import put_batch
from vidformers.parallel.state import convert_layers
from vidformers.training.setup import compile_step, initialise, set_up


def main():
    args = parse(__doc__, config="configs/demo.py", batches=60)
    setup = set_up(load(args.config).to_dict())
    size = setup.train_config.batch_size
    batches = setup.pipeline.train_batches(batch_size=size, seed=0)
    for _ in range(10):  # until the workers have started and their first buffers are used up
        batch = next(batches)
    started = time.perf_counter()
    for _ in range(args.batches):
        batch = next(batches)
    pipeline = args.batches * size / (time.perf_counter() - started)
    batches.close()
    compiled, state = compile_step(setup), convert_layers(initialise(setup), setup.step_abstract)
    batch = put_batch(setup.mesh, batch)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    step = size / float(np.median(seconds[2:]))
    report(
        benchmark="pipeline",
        config=args.config,
        workers=setup.pipeline.workers,
        pipeline_clips_per_second=pipeline,
        step_clips_per_second=step,
        ratio=pipeline / step,
    )


if __name__ == "__main__":
    main()

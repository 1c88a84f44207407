"""Compares two places for the fold of a scheme: before the projection to heads, as in SelfAttention, or after it.

Command: python -m benchmarks.folds [--batch=1] [--rounds=9] [--dtype=float32]
Runs one attention sublayer of base size with a class token on clips of 8 frames of 224 pixels, forward and backward.
The two variants take turns, and their losses must agree up to rounding. Folding after the projection folds q, k and v
separately, three times the bytes, but the projections read tokens in their order. Folding before it folds the tokens
once and unfolds the output of W_O. Prints one JSON line per scheme with the median seconds of both.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report
from vidformers.attention.core import SelfAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.layers.tokens import Tokens

WIDTH, HEADS = 768, 12
SCHEMES = {"frame": Frame(), "time": Time(), "motion, M=2": Motion(2), "joint": Joint()}


def main():
    args = parse(__doc__, batch=1, rounds=9, dtype="float32")
    keep_memory()
    rng = np.random.default_rng(0)
    patches, class_tokens = (
        jnp.asarray(rng.normal(size=(args.batch, *shape, WIDTH)), args.dtype) for shape in ((8, 196), (1,))
    )
    tokens = Tokens(patches, class_tokens, (8, 14, 14))
    for name, scheme in SCHEMES.items():
        runs, seconds = {}, {}
        graph, parameters = nnx.split(
            SelfAttention(scheme, WIDTH, HEADS, dtype=jnp.dtype(args.dtype), rngs=nnx.Rngs(0))
        )
        for place, branch in (
            ("before", SelfAttention.branch),
            ("after", SelfAttention._project_then_fold),
        ):

            def loss(parameters, tokens, graph=graph, branch=branch):
                update = branch(nnx.merge(graph, parameters), tokens)
                return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(update))

            runs[place] = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(parameters, tokens).compile(), parameters
            seconds[place] = []
        losses = [run(parameters, tokens)[0] for run, parameters in runs.values()]
        assert abs(losses[0] - losses[1]) < 1e-2 * abs(losses[0]), f"{name}: the losses differ: {losses}"
        for _ in range(1 + args.rounds):
            for place, (run, parameters) in runs.items():
                started = time.perf_counter()
                jax.block_until_ready(run(parameters, tokens))
                seconds[place].append(time.perf_counter() - started)
        report(
            benchmark="folds",
            scheme=name,
            batch=args.batch,
            dtype=args.dtype,
            seconds={place: statistics.median(times[1:]) for place, times in seconds.items()},
        )


if __name__ == "__main__":
    main()

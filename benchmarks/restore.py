"""Time to restore a checkpoint, and the part of it that verifying the checksums takes.

Command: python -m benchmarks.restore [--config=configs/mevit_b16.py] [--rounds=5]
Saves one training state of random numbers, and restores it with and without verification, in turns. Prints one JSON
line with the median seconds and their ratio: `cached` with the files in memory, and `disk` after the system was asked
to drop them (`posix_fadvise`), as at the start of a run that continues later.
"""

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.arguments import parse
from benchmarks.measure import report
from configs.loading import load
from vidformers import build
from vidformers.parallel.mesh import make_mesh
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.optim import make_optimizer
from vidformers.training.setup import abstract_state


class _Unverified(Checkpoints):
    """Restores checkpoints without reading their checksums."""

    def _find_damage(self, step: int) -> str | None:
        return None


def random_state(config: dict):
    """Returns a training state of random numbers for a config, and the same as shapes, types and shardings."""
    optimizer, _ = make_optimizer(1000, 1000, lr=1e-4, schedule="constant")
    make_model = partial(build, **config["model"])
    _, abstract = abstract_state(make_model, optimizer, config["optim"]["ema_decay"], make_mesh())
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jax.device_put(rng.random(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, abstract), abstract


def drop_from_memory(folder: Path) -> None:
    """Asks the system to drop the files of a folder from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def seconds(kind: type[Checkpoints], workdir: Path, abstract, from_disk: bool) -> float:
    """Restores the checkpoint once. Returns the seconds."""
    if from_disk:
        drop_from_memory(workdir)
    with kind(workdir, read_only=True) as checkpoints:
        started = time.perf_counter()
        restored = checkpoints.restore(abstract)
        assert restored is not None
        jax.block_until_ready(restored[0])
        return time.perf_counter() - started


def main():
    args = parse(__doc__, config="configs/mevit_b16.py", rounds=5)
    state, abstract = random_state(load(args.config).to_dict())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    metrics: dict[str, Any] = {}
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(dir=root) as folder:  # a temporary folder of the system may lie in memory
        workdir = Path(folder)
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(1, state, {})
        del state
        seconds(Checkpoints, workdir, abstract, from_disk=False)  # the first one compiles and opens libraries
        for name, from_disk in (("cached", False), ("disk", True)):
            pairs = [
                [seconds(kind, workdir, abstract, from_disk) for kind in (Checkpoints, _Unverified)]
                for _ in range(args.rounds)
            ]
            verified, unverified = (statistics.median(times) for times in zip(*pairs, strict=True))
            metrics |= {
                f"{name}_verified_seconds": verified,
                f"{name}_unverified_seconds": unverified,
                f"{name}_ratio": verified / unverified,
                f"{name}_pairs": pairs,
            }
    report(benchmark="restore", config=args.config, mebibytes=size / 2**20, **metrics)


if __name__ == "__main__":
    main()

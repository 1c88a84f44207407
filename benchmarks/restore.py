"""Time to restore a checkpoint, and the part of it that verifying the checksums takes.

Command: python -m benchmarks.restore [--config=configs/mevit_b16.py] [--rounds=5] [--compressed]
Saves one training state of random numbers, and restores it with and without verification, in turns. Each restore is
the first one of its process, as in a run that continues, and is timed after the model is traced. Prints one JSON line
with the seconds of the save and of the restores, medians and their ratio: `cached` with the files in memory, and `disk`
after the system was asked to drop them (`posix_fadvise`). --compressed saves the arrays compressed, as Orbax does by
default.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from benchmarks.arguments import parse
from benchmarks.measure import report
from configs.loading import load
from vidformers import build
from vidformers.parallel.mesh import make_mesh
from vidformers.training import checkpoint
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.optim import make_optimizer
from vidformers.training.setup import abstract_state

ROOT = Path(__file__).resolve().parent.parent

# Flags of the processes that restore once: the folder of the run, and which restore is timed.
CHILD = {"workdir": None, "unverified": False, "disk": False}


class _Unverified(Checkpoints):
    """Restores checkpoints without verifying their files."""

    def _find_damage(self, step: int, *, large: bool) -> str:
        return ""


def abstract_training_state(config: dict):
    """Returns the training state of a config as shapes, types and shardings."""
    optimizer, _ = make_optimizer(1000, 1000, lr=1e-4, schedule="constant")
    return abstract_state(partial(build, **config["model"]), optimizer, config["optim"]["ema_decay"], make_mesh())[1]


def random_state(abstract):
    """Returns a training state of random numbers."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jax.device_put(rng.random(leaf.shape, np.float32).astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, abstract)


def drop_from_memory(folder: Path) -> None:
    """Asks the system to drop the files of a folder from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


def restore(workdir: Path, config: dict, unverified: bool, disk: bool) -> float:
    """Restores the checkpoint in a folder. Returns the seconds."""
    abstract, kind = abstract_training_state(config), _Unverified if unverified else Checkpoints
    if disk:
        drop_from_memory(workdir)
    with kind(workdir, read_only=True) as checkpoints:
        started = time.perf_counter()
        restored = checkpoints.restore(abstract)
        assert restored is not None
        jax.block_until_ready(restored[0])
        return time.perf_counter() - started


def restore_in_process(workdir: Path, config: str, *switches: str) -> float:
    """Restores the checkpoint in a folder in a process of its own. Returns the seconds."""
    command = [sys.executable, "-m", "benchmarks.restore", f"--config={config}", f"--workdir={workdir}", *switches]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)


def save(workdir: Path, config: dict, compressed: bool) -> tuple[int, float]:
    """Saves a training state. Returns the bytes of its arrays, and the seconds until the checkpoint is complete."""
    if compressed:
        checkpoint._UNCOMPRESSED = ocp.Context()
    state = random_state(abstract_training_state(config))
    started = time.perf_counter()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, state, {})
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)), time.perf_counter() - started


def main():
    args = parse(__doc__, config="configs/mevit_b16.py", rounds=5, compressed=False, **CHILD)
    config = load(args.config).to_dict()
    if args.workdir is not None:
        print(restore(Path(args.workdir), config, args.unverified, args.disk))
        return
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # a temporary folder of the system may lie in memory
        size, save_seconds = save(Path(folder), config, args.compressed)
        files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        restore_in_process(Path(folder), args.config)  # the first one may compile
        for name, switches in (("cached", []), ("disk", ["--disk"])):
            pairs = [
                [restore_in_process(Path(folder), args.config, *switches, *kind) for kind in ([], ["--unverified"])]
                for _ in range(args.rounds)
            ]
            verified, unverified = (statistics.median(times) for times in zip(*pairs, strict=True))
            metrics |= {
                f"{name}_verified_seconds": verified,
                f"{name}_unverified_seconds": unverified,
                f"{name}_ratio": verified / unverified,
                f"{name}_pairs": pairs,
            }
    report(
        benchmark="restore",
        config=args.config,
        compressed=args.compressed,
        mebibytes=size / 2**20,
        file_mebibytes=files / 2**20,
        save_seconds=save_seconds,
        **metrics,
    )


if __name__ == "__main__":
    main()

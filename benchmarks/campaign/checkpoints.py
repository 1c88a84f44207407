"""One flipped bit or a truncation in a file of the newest checkpoint.

The cases go over every file in turn. The file of the arrays is verified during the load, as in runs of models of
published size: the checksums are of blocks so small that it alone has several. A case is good if the arrays and the
host state of the newest checkpoint are restored unchanged, if the run falls back to the checkpoint before and says so,
or if it is refused in a sentence.
"""

import contextlib
import functools
import io
import random
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from benchmarks.campaign import damage
from benchmarks.campaign.processes import Run, flags, render
from configs.loading import read_flags
from input_pipeline import DataError, checksums
from vidformers.errors import ConfigError
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.setup import set_up

COUNT, SECONDS, BYTES = 500, 60.0, 4 * 2**30
_DAMAGE = (damage.flip_bit, damage.truncate)


def case_set(number: int) -> str:
    return ("flipped bits", "truncations")[number % 2]


def prepare(folder: Path) -> None:
    render(folder / "data")
    workdir = folder / "run"
    if not (folder / "ready").exists():
        shutil.rmtree(workdir, ignore_errors=True)
        run = Run(_flags(folder), folder / "run.txt", folder / "cache")
        assert run.wait(120.0) == 0, run.output.read_text()
        for step in _steps(workdir):
            _verify_arrays_during_load(workdir / "checkpoints" / str(step))
        (folder / "ready").touch()
    assert len(_steps(workdir)) >= 2


def _verify_arrays_during_load(checkpoint: Path) -> None:
    """Rewrites the checksums of a checkpoint, so that its largest file has several blocks and each other file one."""
    *_, second, largest = sorted(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert largest > second
    with mock.patch.object(checksums, "_BLOCK_BYTES", second):
        checksums.write_checksums(checkpoint)


def run_case(number: int, folder: Path) -> dict:
    rng, copy = random.Random(number), folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    before, newest = _steps(copy)[-2:]
    files = sorted(path for path in (copy / "checkpoints" / str(newest)).rglob("*") if path.is_file())
    path = files[number // 2 % len(files)]
    content = path.read_bytes()
    changed = _DAMAGE[number % 2](content, rng)
    path.write_bytes(changed)
    name = str(path.relative_to(copy / "checkpoints" / str(newest)))
    outcome, failed = ("unchanged", False) if changed == content else _restore(folder, copy, before, newest)
    return {"outcome": outcome, "failed": failed, "file": name, "files": len(files), "bytes": len(content)}


def _restore(folder: Path, copy: Path, before: int, newest: int) -> tuple[str, bool]:
    """Returns what comes of restoring the damaged copy, and whether this is a failure."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            restored = _read(folder, copy)
    except (ConfigError, DataError):
        return "refused in a sentence", False
    if restored is None:
        return "started anew without a word", True
    step, arrays, host_state = restored
    if step not in (before, newest):
        return f"restored step {step}", True
    if not _is_equal(arrays, host_state, folder, step):
        return f"silently wrong, step {'newest' if step == newest else 'before'}", True
    if step == newest:
        return "restored unchanged", False
    return ("fell back, aloud", False) if said.getvalue().strip() else ("fell back without a word", True)


def _is_equal(arrays: list, host_state: dict, folder: Path, step: int) -> bool:
    true_arrays, true_host_state = _truth(folder, step)
    return (
        len(arrays) == len(true_arrays)
        and all(np.array_equal(one, two, equal_nan=True) for one, two in zip(arrays, true_arrays, strict=True))
        and host_state == true_host_state
    )


@functools.cache
def _truth(folder: Path, step: int) -> tuple[list, dict]:
    """Returns the arrays and the host state of an undamaged checkpoint."""
    copy = folder / f"only-{step}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    for other in set(_steps(copy)) - {step}:
        shutil.rmtree(copy / "checkpoints" / str(other))
    restored = _read(folder, copy)
    assert restored is not None and restored[0] == step
    return restored[1:]


def _read(folder: Path, workdir: Path) -> tuple[int, list, dict] | None:
    setup = _setup(folder)
    with Checkpoints(workdir, **setup.config["checkpoint"]) as checkpoints:
        restored = checkpoints.restore(setup.abstract)
    if restored is None:
        return None
    state, host_state, step = restored
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)], host_state


@functools.cache
def _setup(folder: Path):
    return set_up(read_flags(_flags(folder), {"workdir": None, "mode": None})[0].to_dict())


def _flags(folder: Path) -> list[str]:
    return flags(folder / "data", folder / "run", {"train.eval_every_steps": "none", "checkpoint.every_steps": 6})


def _steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())

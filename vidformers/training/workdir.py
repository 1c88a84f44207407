"""The folder of a run: one process at a time may train in it, and it says what was run."""

import fcntl
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from input_pipeline.files import write_text
from vidformers.errors import ConfigError, require

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av", "opencv-python-headless", "numpy")

# Of these a resumed run must have the same values, or it would not continue the run that the folder holds.
# How it is computed may change.
IDENTITY = (
    "seed",
    "model",
    "train.batch_size",
    "data.train",
    "data.frames",
    "data.sampling",
    "data.stride",
    "data.fps",
    "data.size",
    "data.short_side",
    "data.flip",
    "data.source",
    "data.crop",
    "data.repeats",
    "data.randaugment",
    "data.erasing",
    "train.mixup",
    "train.cutmix",
    "optim.name",
    "optim.ema_decay",
)
COMPUTED = ("model.remat", "model.unroll", "model.dtype", "model.backend")


def open_workdir(path) -> Path:
    """Makes the folder. Raises ConfigError where it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # of no name that another process could take
    except OSError as error:
        raise ConfigError(f"--workdir={path} cannot be written to: {error.strerror}.") from None
    return path


def lock(workdir: Path):
    """Holds the folder until the file returned is closed or the process ends, however it ends.

    Raises:
        ConfigError: another run holds it.
    """
    file = open(workdir / ".lock", "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"--workdir={workdir} is in use by a run that is still alive.") from None
    return file


def describe_run(config: dict, data: dict) -> dict:
    """What a run ran: config, digests of its data, commit, versions, devices."""
    return {
        "config": config,
        "data": data,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _commit() -> str | None:
    here = Path(__file__).parents[2]
    git = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True
        )
        if (here / ".git").exists()
        else None
    )
    return git.stdout.strip() if git and git.returncode == 0 else None


def write_run_json(workdir: Path, run: dict) -> None:
    """Writes `run.json`."""
    write_text(workdir / "run.json", json.dumps(run, indent=1) + "\n")


def compare_with_folder(workdir: Path, run: dict) -> list[str]:
    """What changes where `run` continues the run that the folder holds, a sentence each.

    Raises:
        ConfigError: another model, seed, manifest, sampling or global batch; the sentence says what differs.
    """
    path = workdir / "run.json"
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old, old_digest = _flat(before["config"]), before["data"]["train"]
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"{path} is damaged; it does not hold a run's description.") from None
    new = _flat(json.loads(json.dumps(run["config"])))
    changed = sorted(field for field in old.keys() | new.keys() if old.get(field) != new.get(field))
    for field in changed:
        same = any(field == name or field.startswith(name + ".") for name in IDENTITY) and field not in COMPUTED
        require(
            not same,
            f"--workdir={workdir} holds a run with {field}={old.get(field)!r}, not "
            f"{new.get(field)!r}: give another workdir.",
        )
    require(
        old_digest == run["data"]["train"],
        f"--workdir={workdir} holds a run on another manifest: the list in {run['data']['train_list']} "
        f"has hash {run['data']['train']}, the run's had {old_digest}.",
    )
    return [f"Continues with {field}={new.get(field)!r} (was {old.get(field)!r})." for field in changed]


def _flat(tree, prefix="") -> dict:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in _flat(child, f"{prefix}{name}.").items()}

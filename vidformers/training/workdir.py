"""The workdir, which is the folder of a run: its lock, and what its `run.json` says of the run."""

import dataclasses
import importlib.metadata
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from input_pipeline import Pipeline
from input_pipeline.files import remove_temporaries
from input_pipeline.outputs import locked
from vidformers.errors import ConfigError, require
from vidformers.models.registry import with_default_fields
from vidformers.pretrained import Init
from vidformers.pretrained.native import resolve_size
from vidformers.training.checkpoint_folder import check_folder
from vidformers.training.commit import git_commit
from vidformers.training.config import OwnConfig, TrainConfig
from vidformers.training.evaluate import EvalProtocol
from vidformers.training.metrics import read_metrics
from vidformers.training.optim import OptimConfig
from vidformers.training.run_json import read_run_json, replace_run_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av", "numpy")
_PACKAGES += ("opencv-python-headless", "opencv-python", "opencv-contrib-python")  # of which one is installed

_NOTE = "saved_step"  # the entry of `run.json` for the step of the last checkpoint

# Config fields and sections that must not differ when a run is continued. They determine the clips of each batch, the
# kinds of augmentation, the model, and the structure of the training state. All other fields may differ, such as the
# learning rate, the schedule, label smoothing, data.brightness or data.magnitude: the change is logged.
_FIXED_FIELDS = (
    "seed",
    "model",
    "train.batch_size",
    "data.train",
    "data.num_classes",
    "data.frames",
    "data.sampling",
    "data.stride",
    "data.fps",
    "data.size",
    "data.short_side",
    "data.flip",
    "data.source",
    "data.labels",
    "data.group",
    "data.balance",
    "data.crop",
    "data.repeats",
    "data.randaugment",
    "data.erasing",
    "train.mixup",
    "train.cutmix",
    "train.class_weights",
    "optim.name",
    "optim.ema_decay",
    "optim.layer_decay",
)
# Fields of the section `model` that may differ: they select how the same function is computed. model.dtype changes
# the rounding, and with it the results. It may differ all the same, so that a run whose loss is no longer finite in
# bfloat16 can continue in float32, as the error message proposes.
_FREE_FIELDS = ("model.remat", "model.unroll", "model.dtype", "model.backend")
# Fields of the section `model` that are fields of the section `data`, too.
_SHARED_FIELDS = {
    "model.frames": "data.frames",
    "model.image_size": "data.size",
    "model.num_classes": "data.num_classes",
}
# The same function of the same parameters, beside _FREE_FIELDS. Training with dropout differs.
_FREE_AFTER_TRAINING = ("model.frames_at_once",)
# The sections whose fields are those of a dataclass.
_SECTIONS = {
    "data": Pipeline,
    "init": Init,
    "train": TrainConfig,
    "optim": OptimConfig,
    "eval": EvalProtocol,
    "own": OwnConfig,
}


def open_workdir(path) -> Path:
    """Creates the workdir if it does not exist, and returns its path.

    Raises:
        ConfigError: the folder cannot be created or written to, or checkpoints cannot be saved there.
    """
    path = Path(path)
    check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # has no name, so it collides with no other process
    except OSError as error:
        raise ConfigError(
            f"--workdir={path} cannot be written to: {error.strerror}. Give a folder that you may write to."
        ) from None
    return path


@contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """Locks the workdir for training until the block ends. Removes temporary files that killed processes left in it.

    Raises:
        DataError: another run holds the lock.
    """
    taken = f"--workdir={workdir} is in use by a run that is still alive. Stop that run, or give another workdir."
    with locked(workdir / ".lock", taken):
        remove_temporaries(workdir)
        yield


def _versions() -> dict[str, str]:
    """Returns the versions of the packages, without those that are not installed under their name."""
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe_run(config: dict, data: dict, attention: dict[str, str], total_steps: int | None = None) -> dict:
    """Returns the contents of `run.json`: config, data, attention backends, steps, commit, versions and devices.

    Args:
        config: the config of the run.
        data: the entry `data`: the digests of the manifests, the class names and other facts.
        attention: the dictionary of `attention.fused.record_backends`, which is filled while the step is traced.
        total_steps: the length of the run.
    """
    return {
        "config": config,
        "data": data,
        "attention": attention,
        "total_steps": total_steps,
        "commit": git_commit(),
        "python": sys.version.split()[0],
        "versions": _versions(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def write_run_json(workdir: Path, run: dict) -> None:
    """Writes `run.json`.

    The file keeps its note of the last checkpoint, see `note_saved`, and with it the section `init`, by which the run
    has started.
    """
    with suppress(ConfigError):
        stored = read_run_json(workdir)
        if _NOTE in stored:
            init = {name: section for name, section in stored["config"].items() if name == "init"}
            run = run | {_NOTE: stored[_NOTE], "config": run["config"] | init}
    replace_run_json(workdir, run)


def note_saved(workdir: Path, step: int) -> None:
    """Notes in `run.json` that the checkpoint of `step` is saved."""
    with suppress(ConfigError):  # no run, as where a program saves checkpoints by itself
        replace_run_json(workdir, read_run_json(workdir) | {_NOTE: step})


def last_saved_step(workdir: Path) -> int:
    """Returns the step of the last checkpoint that the run in the folder has saved, or 0.

    Earlier versions wrote no note. There, a row after the second save tells that the first one is complete, since a
    save begins after the one before has ended.
    """
    if not (workdir / "run.json").exists():
        return 0
    run = read_run_json(workdir)
    if isinstance(run.get(_NOTE), int):
        return run[_NOTE]
    every = run["config"].get("checkpoint", {}).get("every_steps")
    return every if isinstance(every, int) and any(row["step"] > 2 * every for row in read_metrics(workdir)) else 0


def differences_from_stored_run(workdir: Path, run: dict) -> list[str]:
    """Compares the new config with that of the run in the folder, before the run is continued.

    Args:
        workdir: the folder.
        run: the new contents of `run.json`, from `describe_run`.
    Returns:
        A log line for each field that differs, [] if the folder holds no run.
    Raises:
        ConfigError: `run.json` is damaged, or the training videos or a field of `_FIXED_FIELDS` differ. The message
            names every such field, both values, and the flags that continue the run.
    """
    if not (workdir / "run.json").exists():
        return [
            f"{path.parent} holds checkpoints without a run.json. The config of the run is unknown and not compared."
            for path in [*(workdir / "checkpoints").glob("[0-9]*")][:1]
        ]
    stored = read_run_json(workdir)
    old, old_digest = _flatten(with_default_sections(stored["config"])), stored["data"].get("train")
    fields = _flatten(stored["config"]).keys()
    new = _flatten(json.loads(json.dumps(run["config"])))  # tuples become lists, as in the stored file
    old = {field: value for field, value in old.items() if field in fields or field in new}
    changed = sorted(field for field in old.keys() | new.keys() if old.get(field) != new.get(field))
    refused = [field for field in changed if _is_fixed(field) and _SHARED_FIELDS.get(field) not in changed]
    require(not refused, _refusal(workdir, refused, old, new))
    data = run["data"]
    require(
        old_digest == data["train"] or "data.exclude" not in changed,
        f"--workdir={workdir} holds a run with data.exclude={old.get('data.exclude')!r}, and its order of videos "
        "depends on it. Give the same to continue that run, with a larger data.max_bad_fraction if videos are damaged, "
        "or give another workdir.",
    )
    require(
        old_digest == data["train"],
        f"--workdir={workdir} holds a run on other training videos: {data['train_list']} has hash {data['train']}, but "
        f"the run had {old_digest}. Restore the list to continue that run, or give another workdir.",
    )
    is_begun = last_saved_step(workdir) > 0
    return [
        f"{field}={new.get(field)!r} has no effect, since weights are for the start of a run."
        if is_begun and field.startswith("init.")
        else f"Continues with {field}={new.get(field)!r} (was {old.get(field)!r})."
        for field in changed
    ]


def require_same_model(workdir, stored: dict, model: dict) -> None:
    """Checks that a section `model` describes the model of a run, but for fields that say how it is computed.

    Args:
        workdir: the folder of the run.
        stored: the section `model` of its config.
        model: the section to compare.
    Raises:
        ConfigError: a field differs. The message names each, and both values.
    """
    old, new = (
        _flatten({"model": json.loads(json.dumps(resolve_size(with_default_fields(section))))})
        for section in (stored, model)
    )
    free = (*_FREE_FIELDS, *_FREE_AFTER_TRAINING)
    fields = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name not in free)
    if "model.name" in fields:  # the other fields differ with it
        fields = ["model.name"]
    values = "; ".join(f"{_SHARED_FIELDS.get(name, name)}={old.get(name)!r}, not {new.get(name)!r}" for name in fields)
    require(
        not fields,
        f"--workdir={workdir} holds a run with {values}. Leave out --config and these fields to use the model of the "
        "run, or give another workdir.",
    )


def with_default_sections(config: dict) -> dict:
    """Returns the config of a stored run with the defaults of the fields that its version did not have.

    Args:
        config: the entry `config` of `run.json`. Its sections `init`, `train`, `optim` and `eval` may be missing.
    Returns:
        The config with lists in place of tuples, as in JSON.
    """
    complete = {**config, "model": with_default_fields(config["model"])}
    for name, section in _SECTIONS.items():
        fields = dataclasses.fields(section)
        defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
        complete[name] = defaults | config.get(name, {})
    if "val_seed" not in config["data"]:  # it follows the seed unless it is given
        complete["data"]["val_seed"] = config.get("seed", 0)
    return json.loads(json.dumps(complete))


def _is_fixed(field: str) -> bool:
    """Returns whether a run is continued only with the same value of the field."""
    is_listed = any(field == name or field.startswith(name + ".") for name in _FIXED_FIELDS)
    return is_listed and field not in _FREE_FIELDS


def _refusal(workdir, fields: list[str], old: dict, new: dict) -> str:
    """Returns the message for a run whose `fields` differ: both values of each, and the flags with the stored ones."""
    if "model.name" in fields:  # the other fields of the model differ with it, and no flag sets the name
        fields, advice = ["model.name"], "Give the config of that run to continue it"
    else:
        flags = [
            shlex.quote(f"--config.{field}={'none' if old[field] is None else old[field]}")
            for field in fields
            if field in old and field in new
        ]
        advice = f"Continue that run with {' '.join(flags)}" if flags else "This version cannot continue that run"
    values = "; ".join(f"{field}={old.get(field)!r}, not {new.get(field)!r}" for field in fields)
    return f"--workdir={workdir} holds a run with {values}. {advice}, or give another workdir."


def _flatten(tree, prefix="") -> dict:
    """Returns the leaves of nested dicts by their path, such as `data.frames`."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in _flatten(child, f"{prefix}{name}.").items()}

"""Three ill values by rule for every field of a config, through the whole set-up of a run, where nothing is compiled.
And one step with a value at the edge of what is allowed, for every field that takes it.

Command: python -m benchmarks.campaign.fields

A value is put into the config as a config file may do it, without the check of its type. A case fails if `set_up`
raises anything but one sentence. The fields are those of the demo, and the fields that only other models have.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

SECONDS, BYTES = 60.0, 8 * 2**30  # the limits of a case
_ROOT = Path(__file__).resolve().parents[2]
# By type: numbers without a meaning, of a size that no field has, and of another type.
ILL_VALUES: dict[type, tuple[Any, Any, Any]] = {
    bool: (2, "nonsense", None),
    int: (-7, 10**18, math.nan),
    float: (math.nan, math.inf, -1e300),
    str: ("", "nonsense", 7),
    tuple: ((math.nan,), ("nonsense",) * 7, -1),
}
# Values that mean something, at the edge of what most fields allow. Those that are accepted run one step.
EDGE_VALUES: dict[type, tuple[Any, ...]] = {bool: (True,), int: (1,), float: (1.0,), str: (), tuple: ()}
_TINY = {
    "data.source": "csv", "data.frames": 4, "data.size": 16, "data.short_side": (18, 20), "data.test_short_side": 18,
    "data.classes": None, "data.flip_swaps": ((0, 1),), "data.workers": 0, "train.total_steps": 12,
    "train.batch_size": 8, "optim.warmup_steps": 2, "eval.batch_size": 8,
}  # fmt: skip
_ONE_STEP = {
    "train": {"total_steps": 1, "total_epochs": None, "eval_every_steps": None},
    "optim": {"warmup_steps": None, "warmup_epochs": None},
}
# Fields of the section `model`, unless the model has others of its own (`configs.demo.SMALL`).
_TINY_MODEL = {
    "mevit": dict(width=16, heads=2, depth=3, patch_size=4, unroll="1"),
    "stat": dict(width=16, depth=2, depths=(1, 1)),
}


class Case(NamedTuple):
    """A value of a field, such as 'optim.lr', of the config configs/demo.py:MODEL."""

    model: str
    field: str
    value: Any


@cache
def cases() -> tuple[Case, ...]:
    """Returns all ill values: of every field of the demo's MEViT, then of the fields that only other models have."""
    return tuple(_cases(ILL_VALUES))


@cache
def edge_cases() -> tuple[Case, ...]:
    """Returns the values of the same fields that may be accepted."""
    return tuple(_cases(EDGE_VALUES))


def _cases(values: dict[type, tuple[Any, ...]]) -> Iterator[Case]:
    from vidformers import MODELS

    seen = set()
    for model in sorted(MODELS, key=lambda name: name != "mevit"):
        config = _config(model)
        for field in _fields(config):
            if field not in seen and field != "model.name":
                seen.add(field)
                section, name = _section(config, field)
                for value in values[section.get_type(name)]:
                    yield Case(model, field, value)


def _config(model: str, root="") -> ConfigDict:
    """Returns the config of a tiny run on the clips in `root`."""
    from configs.loading import load

    config = load(f"{_ROOT}/configs/demo.py:{model}")
    config.model.update(_TINY_MODEL.get(model, {}))
    for field, value in {**_TINY, "data.root": str(root)}.items():
        section, name = _section(config, field)
        section[name] = value
    return config


def _fields(config: ConfigDict) -> list[str]:
    """Returns the names of the fields of a config, such as 'seed' and 'optim.lr'."""
    sections = {name: value for name, value in config.items() if isinstance(value, ConfigDict)}
    fields = [f"{section}.{name}" for section, values in sections.items() for name in values]
    return [name for name in config if name not in sections] + fields


def _section(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    section, _, name = field.rpartition(".")
    return config[section] if section else config, name


def config_of(case: Case, root) -> dict:
    """Returns the config of a case as nested dicts."""
    config = _config(case.model, root)
    with config.ignore_type():
        section, name = _section(config, case.field)
        section[name] = case.value
    return config.to_dict()


def outcome(case: Case, root, workdir: Path | None = None) -> tuple[str, str]:
    """Returns 'refused', 'accepted' or 'traceback', and the sentence or the exception.

    Args:
        root: the folder of the clips.
        workdir: the folder of a run of one step, or None for the set-up alone.
    """
    from input_pipeline import DataError
    from vidformers import ConfigError
    from vidformers.training.setup import load_weights, set_up
    from vidformers.training.train import train

    try:
        config = config_of(case, root)
    except Exception as error:  # `configs.loading.load` refuses a config file that raises
        return "refused", f"{type(error).__name__}: {error}"
    try:
        load_weights(set_up(config))
        if workdir is not None:
            train(config | {name: config[name] | fields for name, fields in _ONE_STEP.items()}, workdir)
    except (ConfigError, DataError) as error:
        text = str(error)
        is_sentence = "\n" not in text and text.endswith((".", "?")) and len(text) < 1000
        return ("refused" if is_sentence else "traceback"), text
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "accepted", ""


def run(root, report=print) -> dict[str, list[Case]]:
    """Runs all cases and reports each that is not refused.

    Returns:
        {'refused' or 'accepted' or 'traceback': cases}.
    """
    results: dict[str, list[Case]] = {"refused": [], "accepted": [], "traceback": []}
    for case in cases():
        kind, text = outcome(case, root)
        results[kind].append(case)
        if kind != "refused":
            report(f"{kind}: configs/demo.py:{case.model} {case.field}={case.value!r} {text}".rstrip())
    report(", ".join(f"{len(found)} {kind}" for kind, found in results.items()))
    return results


# The interface of a part of the campaign, see `benchmarks.campaign`.


def __getattr__(name: str):
    if name == "COUNT":  # imports the models
        return len(cases()) + len(edge_cases())
    raise AttributeError(name)


def case_set(number: int) -> str:
    ill = cases()
    return "one step" if number >= len(ill) else ill[number].field.rpartition(".")[0] or "seed"


def prepare(folder: Path) -> None:
    from input_pipeline.motion_clips import MotionClips, ensure

    ensure(folder / "data", MotionClips(train_pairs=20, val_pairs=5, size=32, frames=8), report=print, workers=1)


def run_case(number: int, folder: Path) -> dict:
    workdir = None
    if number >= len(cases()):
        workdir = folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
    kind, text = outcome((*cases(), *edge_cases())[number], folder / "data", workdir)
    return {"outcome": f"{kind}: {text}" if kind == "traceback" else kind, "failed": kind == "traceback"}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        return int(bool(run(Path(folder) / "data")["traceback"]))


if __name__ == "__main__":
    sys.exit(main())

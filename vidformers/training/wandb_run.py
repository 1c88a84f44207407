"""The metrics of a run for Weights & Biases, beside `metrics.jsonl` and TensorBoard. Needs the package `wandb`."""

import importlib
import os
from pathlib import Path
from typing import Any

from input_pipeline.files import write_text
from input_pipeline.json_files import JsonError, read_json
from input_pipeline.text import one_line
from vidformers.errors import ConfigError, require

_FILE = "wandb.json"


def import_wandb(project: str | None):
    """Returns the module `wandb`, or None without a project.

    Args:
        project: the field train.wandb.
    Raises:
        ConfigError: the package is not installed.
    """
    if project is None:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        wandb = None
    require(
        hasattr(wandb, "init"),  # a folder `wandb` in the current folder is imported, too
        f"train.wandb={project} needs the package wandb, which is not installed. Run: pip install wandb, or leave out "
        "train.wandb.",
    )
    return wandb


class WandbRun:
    """A run of Weights & Biases in the folder `wandb` of the workdir. Only one process of a run has one.

    The id of the run is in `wandb.json` of the workdir, so that a run that continues there continues here. Steps that
    Weights & Biases has are not sent again. Without a connection (WANDB_MODE=offline), it knows of no earlier steps:
    then each start writes all rows of `metrics.jsonl` to a new folder `wandb/offline-run-*`, of which the newest is
    complete. The environment variables of `wandb` apply, such as WANDB_MODE and WANDB_ENTITY.

    Args:
        workdir: the folder of the run. Its name is the name of the run.
        project: the field train.wandb, the name of the project.
        config: the config of the run as nested dicts.
    Raises:
        ConfigError: Weights & Biases refuses the run, `wandb` is not installed, or `wandb.json` is damaged.
    """

    def __init__(self, workdir: Path, project: str, config: dict[str, Any]):
        wandb = import_wandb(project)
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(workdir),
                resume="allow",
                name=workdir.resolve().name,
                dir=os.fspath(workdir),
                config=config,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"train.wandb={project}: Weights & Biases refuses the run ({one_line(error)}). Fix this, set the "
                "environment variable WANDB_MODE=offline to store the metrics in the workdir, or leave out train.wandb."
            ) from None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Sends the metrics of rows of `metrics.jsonl`, without those of steps before the last one that was sent."""
        for row in rows:
            if row["step"] >= self._run.step:
                self._run.log({name: row[name] for name in row if name not in ("step", "time")}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _run_id(workdir: Path) -> str:
    """Returns the id of the run in the workdir, which is made at its first start."""
    path = Path(workdir) / _FILE
    try:
        return read_json(path, {"id": str})["id"]
    except FileNotFoundError:
        run_id = os.urandom(4).hex()
        write_text(path, f'{{"id": "{run_id}"}}\n')
        return run_id
    except JsonError as error:
        raise ConfigError(
            f"{path} is damaged: it {error}. Remove it, and the metrics go to a new run of Weights & Biases."
        ) from None

"""The lists of a validation part that was drawn: they lie in the folder of the run, which reads them when it continues.

The data may have changed since: a video that was trained on must not move to the validation part.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline import Pipeline
from input_pipeline.drawn_split import list_text
from input_pipeline.files import write_text
from vidformers.training.run_json import read_run_json

_ENTRY = "split"  # of the section `data` of run.json
_LISTS = {"train": "split/train.csv", "val": "split/val.csv"}  # in the folder of the run
_CLASSES = {"classes": "split/classes.txt"}


def stored_lists(workdir, data: Mapping[str, Any]) -> dict[str, str]:
    """Returns the lists of the run in `workdir` in place of those of a section `data`, {field: absolute path}.

    Args:
        workdir: the folder of a run, which need not exist.
        data: the section `data` of the config. A validation list that it names is kept.
    Returns:
        {} if there is no run, or its validation part was not drawn.
    Raises:
        ConfigError: `run.json` is damaged.
    """
    if not os.path.exists(os.path.join(workdir, "run.json")):
        return {}
    files = read_run_json(workdir)["data"].get(_ENTRY)
    if not isinstance(files, dict) or data["source"] != "auto":
        return {}
    return {
        field: os.path.abspath(os.path.join(workdir, path))
        for field, path in files.items()
        if field in _LISTS | _CLASSES and (field != "val" or data["val"] is None)
    }


def split_entry(pipeline: Pipeline, lists: Mapping[str, str]) -> dict[str, Any]:
    """Returns the entry of run.json that names the lists of a drawn split, {} if the data have a validation part.

    Args:
        pipeline: the data of the run.
        lists: what `stored_lists` returned.
    """
    if not pipeline.parts.is_drawn and not lists:
        return {}
    return {_ENTRY: _LISTS | (_CLASSES if pipeline.parts.listed.classes else {})}


def write_split(workdir: Path, pipeline: Pipeline) -> None:
    """Writes the lists of a drawn split, before `run.json` names them. A run that continues keeps its lists."""
    if not pipeline.parts.is_drawn:
        return
    (workdir / "split").mkdir(exist_ok=True)
    if classes := pipeline.parts.listed.classes:
        write_text(workdir / _CLASSES["classes"], "".join(f"{name}\n" for name in classes))
    for part, file in _LISTS.items():
        write_text(workdir / file, list_text(pipeline.manifest(part), pipeline.root))

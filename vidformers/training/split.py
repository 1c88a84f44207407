"""The lists of a validation part that was drawn: they lie in the folder of the run, which reads them when it continues.

The data may have changed since: a video that was trained on must not move to the validation part.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline import Pipeline
from input_pipeline.annotations import read_class_file
from input_pipeline.drawn_split import list_text
from input_pipeline.files import write_text
from input_pipeline.layouts import find_layout
from vidformers.errors import require
from vidformers.training.run_json import read_run_json

_ENTRY = "split"  # of the section `data` of run.json
_LISTS = {"train": "split/train.csv", "val": "split/val.csv"}  # in the folder of the run
_CLASSES = {"classes": "split/classes.txt"}
_DATA = ("source", "root", "name", "train", "val", "test", "split", "classes")  # the fields that say which videos


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


def lists_to_evaluate(workdir, data: Mapping[str, Any], part: str) -> tuple[dict[str, Any], list[str]]:
    """Returns fields of the section `data` with which a run evaluates a part of the data, and sentences on them.

    The lists of a drawn split hold for the data of the run, and for copies of them in another folder. Of other data
    without a validation part all videos are evaluated. Classes are those of the run.

    Args:
        workdir: the folder of a run, which need not exist.
        data: the section `data` of the config.
        part: 'train', 'val' or 'test'.
    Raises:
        ConfigError: `run.json` is damaged, or data.classes is not that of the run.
    """
    if not os.path.exists(os.path.join(workdir, "run.json")):
        return {}, []
    run, sentences = read_run_json(workdir), []
    trained = run["config"]["data"]
    lists: dict[str, Any] = stored_lists(workdir, data)
    is_other = any(trained.get(name) != data[name] for name in _DATA if name in trained)
    layout = find_layout(data["root"], data["train"], data["val"], data["test"]) if data["source"] == "auto" else None
    is_moved = trained.get("root", data["root"]) != data["root"]
    if lists and is_moved and not _holds(data["root"], lists.get("val", lists["train"])):
        lists = {}
    if layout is not None and lists and part == "test" and layout.test:
        lists["test"] = layout.test
    if layout is not None and not lists and part == "val" and layout.val is None and is_other:
        lists["val"] = layout.train
        sentences.append(f"data.root={data['root']} has no validation part. All of its videos are evaluated.")
    return (lists | _classes_of_run(run["data"].get("classes"), data) if is_other else lists), sentences


def _holds(root: str, path: str) -> bool:
    """Returns whether all videos of a list are in the folder `root`."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    return all(os.path.exists(os.path.join(root, name)) for name in names)


def _classes_of_run(names: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the field `classes` that gives other data the classes of a run, {} if they need none."""
    if not isinstance(names, list) or names == list(map(str, range(len(names)))):
        return {}  # the labels are numbers
    path = data["classes"]
    if path is None or not os.path.exists(os.path.join(data["root"], path)):
        return {"classes": tuple(names)}
    require(
        read_class_file(path, data["root"]) == tuple(names),
        f"data.classes={path} lists other classes than the run, or another order. Set "
        "--config.data.classes=none if the labels are names: they are matched with the classes of the run.",
    )
    return {}


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

"""The layout of own data: which lists `data.root` holds, for data.source=auto, and the number of classes."""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from input_pipeline.annotations import read_class_file
from input_pipeline.errors import DataError
from input_pipeline.labels import found_names, split_labels
from input_pipeline.sources import auto, shards
from input_pipeline.sources.files import is_video, list_folder
from input_pipeline.text import enumeration

_CLASS_FOLDERS = "class folders"
_PART_FOLDERS = (auto.TRAIN[1], *auto.VAL[1:], *auto.TEST[1:])
_ARCHIVES = frozenset(".zip .tar .tgz .gz .bz2 .xz .7z .rar".split())


class Layout(NamedTuple):
    """The lists of a data set, relative to its root or absolute. Each is a csv file or a folder of class folders.

    Attributes:
        train: the list of the training part. It is the whole data set if `val` is None.
        val, test: the other lists, or None.
        remark: a sentence if the root also holds lists that are not read, or "".
    """

    train: str
    val: str | None
    test: str | None
    remark: str = ""


def find_layout(root: str, train: str | None = None, val: str | None = None, test: str | None = None) -> Layout:
    """Returns the layout of the data in `root`: csv files before `train/` and `val/`, before class folders alone.

    Args:
        root: data.root.
        train, val, test: data.train, data.val and data.test. None: `train.csv` or `train`, and so on.

    Raises:
        DataError: `root` is not a folder, holds a part for validation or tests and none for training, or holds parts
            without class folders.
    """
    if not os.path.isdir(root):
        raise DataError(_not_a_folder(root))
    names = list_folder(root)
    taken = train or next(name for name in auto.TRAIN if _exists(root, name))
    kind = not os.path.isdir(os.path.join(root, taken))
    found = {True: [_first(root, auto.VAL, True), _first(root, auto.TEST, True)]}
    found[False] = [_first(root, auto.VAL, False), _first(root, auto.TEST, False)]
    if taken == os.curdir:
        for name in (name for name in (*found[True], *found[False]) if name and name not in (val, test)):
            raise DataError(
                f"{root} holds {name}, but neither train.csv nor a folder train with a folder for each class. Add one "
                "of them, or set data.train to the list of the training videos."
            )
    _require_class_folders(root, taken, names)
    unread = [name for name in found[not kind] if name and name not in (val, test)] if taken != os.curdir else []
    if train is None:
        unread = [name for name in auto.TRAIN[1:-1] if name != taken and _exists(root, name)] + unread
        if taken != os.curdir and any(_is_class_folder(root, name) for name in names):
            unread.append(_CLASS_FOLDERS)
    remark = f"{root} also holds {enumeration(unread, 'and')}. The videos are those of {taken}." if unread else ""
    return Layout(taken, val or found[kind][0], test or found[kind][1], remark)


def _not_a_folder(root: str) -> str:
    """Returns the sentence on a data.root that is not a folder."""
    if not os.path.exists(root):
        return f"data.root={root} does not exist. Set it to the folder of your videos."
    if os.path.splitext(root)[1].lower() in _ARCHIVES:
        return f"data.root={root} is an archive. Unpack it, and set data.root to the folder with its videos."
    return f"data.root={root} is a file. Set it to the folder of your videos; data.train and data.val name lists."


def _require_class_folders(root: str, taken: str, names: Iterable[str]) -> None:
    """Raises DataError if a folder that can only be a part, such as `val`, holds videos without class folders.

    Args:
        root: data.root.
        taken: the training list.
        names: the names in `root`.
    """
    folders = [name for name in names if os.path.isdir(os.path.join(root, name))]
    parts = [name for name in folders if name in _PART_FOLDERS and _is_class_folder(root, name)]
    is_part = taken == auto.TRAIN[1] or taken == os.curdir and len(parts) > 1 and parts == folders
    if parts and is_part:
        raise DataError(
            f"{os.path.join(root, parts[0])} holds videos and no class folders. Put the videos of each class into a "
            f"folder of its own there, named after the class, or list them in {parts[0]}.csv with the columns "
            "path,label."
        )


def refuse_inside(folder: str, data: dict[str, Any]) -> None:
    """Raises DataError if a folder that is written to is one of class folders, or lies in one.

    Args:
        folder: the folder, which need not exist.
        data: the section `data` of a config with data.source='auto'.
    """
    layout = find_layout(data["root"], data["train"], data["val"], data["test"])
    for part in filter(None, (layout.train, layout.val, layout.test)):
        path = os.path.realpath(os.path.join(data["root"], part))
        if os.path.isdir(path) and os.path.commonpath([path, os.path.realpath(folder)]) == path:
            raise DataError(
                f"--workdir={folder} is in {path}, the folders of which are classes. Give a folder outside of it."
            )


def count_classes(data: dict[str, Any]) -> int:
    """Returns the number of classes of own data or shards: that of the class file, or of the training list.

    Args:
        data: the section `data` of a config with data.source='auto' or 'shards'.

    Raises:
        DataError: the list or the class file has a mistake, or the labels are numbers of which most are not used.
    """
    root = data["root"]
    if data["classes"] is not None:
        return len(read_class_file(data["classes"], root))
    if data["source"] == "shards":
        return len(shards.classes(root, os.path.join(root, data["name"] or "", data["train"] or shards.TRAIN[0])))
    train = find_layout(root, data["train"], data["val"], data["test"]).train
    train = root if train == os.curdir else os.path.join(root, train)
    entries = auto.read(train, root=root, split=1).entries
    names = auto.classes(root, train) or found_names(train, entries, data["labels"])
    if names is not None:
        return len(names)
    return _largest(train, {int(label) for entry in entries for label in split_labels(str(entry.label))}) + 1


def _largest(train: str, numbers: set[int]) -> int:
    """Returns the largest of the class numbers in a training list, which must be meant as such."""
    largest = max(numbers, default=0)
    if numbers and (largest >= 2 * len(numbers) or min(numbers) > 0):
        raise DataError(
            f"{train}: the labels are {len(numbers)} different numbers from {min(numbers)} to {largest}. Number the "
            "classes from 0 without gaps, or write their names; or set data.num_classes if other classes have no "
            "videos."
        )
    return largest


def _exists(root: str, name: str) -> bool:
    path = os.path.join(root, name)
    return name == os.curdir or (os.path.isfile(path) if name.endswith(".csv") else auto.is_part_folder(path))


def _first(root: str, names: Iterable[str], is_csv: bool) -> str | None:
    """Returns the first of some csv files, or of some folders, that exists."""
    return next((name for name in names if name.endswith(".csv") == is_csv and _exists(root, name)), None)


def _is_class_folder(root: str, name: str) -> bool:
    path = os.path.join(root, name)
    return os.path.isdir(path) and not auto.is_part_folder(path) and any(map(is_video, list_folder(path)))

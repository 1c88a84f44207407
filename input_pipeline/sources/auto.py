"""Lists in the layout that `data.root` has: csv files, class folders in `train/` and `val/`, or class folders alone.

A list is a csv file (see `csv`) or a folder of class folders (see `folders`). The classes are those of the training
list: names in alphabetical order, where numbers in names count as numbers, or the numbers that the list gives.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources import csv, folders
from input_pipeline.sources.files import is_frame, is_picture, is_video, list_folder
from input_pipeline.sources.listing import Listing
from input_pipeline.text import natural_key

TRAIN = ("train.csv", "train", os.curdir)
VAL = ("val.csv", "val", "validation")
TEST = ("test.csv", "test")
# Other names of the folders of parts.
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_PARTS |= {"test": "test", "testing": "test"}


def read(path, *, root, split) -> Listing:
    """Returns the videos of a csv file, or of the class folders in a folder.

    Raises:
        DataError: the list has a mistake, a class folder holds no videos, or its name is no class name.
    """
    if not os.path.isdir(path):
        return csv.read(path, root=root, split=split)
    _check_class_folders(path)
    entries = folders.read(path, root=root, split=split).entries
    return Listing(tuple(entry._replace(label=str(entry.label).strip()) for entry in entries))


def classes(root, train) -> tuple[str, ...] | None:
    """Returns the names of the training folders in natural order, or None for a csv file, see `labels.found_names`."""
    if not os.path.isdir(train):
        return None
    return tuple(sorted(map(str.strip, folders.classes(root, train)), key=natural_key))


def is_part_folder(path) -> bool:
    """Returns whether a folder holds class folders, and so is a part such as `train/` rather than a class."""
    if not os.path.isdir(path):
        return False
    names = list_folder(path)
    inner = [name for name in names if os.path.isdir(os.path.join(path, name))]
    if any(map(is_video, names)) or not inner:
        return False
    # A folder of frames in each folder is a class whose videos are folders of frames.
    return not all(any(map(is_frame, list_folder(os.path.join(path, name)))) for name in inner)


def _refuse_deeper(path, names: list[str]) -> None:
    """Raises DataError if the class folders seem to be in one of the folders `names` rather than in `path`."""
    for name in names:
        if (part := _PARTS.get(name.casefold())) and is_part_folder(os.path.join(path, name)):
            raise DataError(f"{os.path.join(path, name)} holds class folders. Rename it to {part} if it is that part.")
    if len(names) == 1 and is_part_folder(below := os.path.join(path, names[0])):
        raise DataError(f"The only folder in {path} is {names[0]}, which holds folders. Set data.root={below}.")


def _check_class_folders(path) -> None:
    """Raises DataError unless every folder in `path` holds videos, as files or as folders of frames."""
    names = [name for name in list_folder(path) if os.path.isdir(os.path.join(path, name))]
    _refuse_deeper(path, names)
    stripped: dict[str, str] = {}
    for name in names:
        folder = os.path.join(path, name)
        other = stripped.setdefault(name.strip(), name)
        if other != name or not name.strip() or "\n" in name or "\r" in name:
            reason = f"differs from {shown(other)} only in blanks" if other != name else "is no class name"
            raise DataError(f"The name of the class folder {shown(folder)} {reason}. Rename it.")
        inner = list_folder(folder)
        pictures = [file for file in inner if is_picture(file)]
        if pictures and not any(map(is_video, inner)):
            raise DataError(
                f"{folder} holds pictures, such as {shown(pictures[0])}, and no videos. Put videos there, or each "
                "video as a folder of its numbered JPEG frames."
            )
        if not inner:
            raise DataError(f"The class folder {folder} holds no videos. Add some, or remove the folder.")
        for file in inner:
            video = os.path.join(folder, file)
            if os.path.isdir(video) and not any(map(is_frame, list_folder(video))):
                raise DataError(
                    f"{video} is a folder in a class folder and holds no numbered JPEG frames. Put the videos of a "
                    f"class into {folder} itself."
                )
    if not names:
        found = "videos and " if any(map(is_video, list_folder(path))) else ""
        raise DataError(
            f"{path} holds {found}no class folders and no train.csv. Put the videos of each class into a folder of its "
            "own, named after the class, or list them in train.csv with the columns path,label."
        )

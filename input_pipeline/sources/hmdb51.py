"""HMDB51 (Kuehne et al., 2011): clips in class folders, and three splits into training and test.

`CLASS_test_split1.txt` says of every clip of a class whether it is for training (1), for testing (2) or unused (0).
These files lie in `root` or in one folder of it, testTrainMulti_7030_splits as published; so do the class folders.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.sources.files import find_folder, list_folder, read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train",), ("test",)  # parts of a split, not files

_PARTS = {"train": "1", "test": "2"}


def read(path, *, root, split) -> Listing:
    """The clips of a part, by class and in the order of its file.

    Args:
      path: ends in 'train' or 'test'.

    Raises:
      DataError: `path` is neither, there are no files for this split, or a line is not `clip.avi 0|1|2`.
    """
    part = os.path.basename(path)
    if part not in _PARTS:
        raise DataError(f"data.train and data.val must be 'train' or 'test' for HMDB51, not {part!r}.")
    files = _files(root, split)
    folder = find_folder(root, lambda found: not files.keys().isdisjoint(found)) or root
    entries = []
    for label, file in files.items():
        for line, text in read_lines(file):
            name, _, mark = text.rpartition(" ")
            if not name or mark not in ("0", "1", "2"):
                raise DataError(f"{file} line {line}: expected a clip and 0, 1 or 2, and found {text!r}.")
            if mark == _PARTS[part]:
                name = f"{label}/{name.rstrip()}"
                entries.append(Entry(name, os.path.join(folder, name), label, 0))
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...]:
    """The classes in alphabetical order: their authors number none."""
    del train
    return tuple(_files(root, 1))


def _files(root, split):
    """Class -> its file, by class."""
    end = f"_test_split{split}.txt"
    folder = find_folder(root, lambda names: any(name.endswith(end) for name in names))
    if folder is None:
        raise DataError(f"{root} and the folders in it hold no file CLASS{end} of HMDB51 (data.split={split}).")
    return {name.removesuffix(end): os.path.join(folder, name) for name in list_folder(folder) if name.endswith(end)}

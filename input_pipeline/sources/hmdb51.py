"""HMDB51 (Kuehne et al., 2011): clips in class folders, and three splits into training and test clips.

`CLASS_test_split1.txt` marks each clip of a class as training (1), test (2) or unused (0). These files are in `root` or
in one folder of `root`, which is named testTrainMulti_7030_splits as published. The class folders are in `root` or in
one folder of `root`, too.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import find_folder, list_folder, read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train",), ("test",)  # subsets of a split, not files

_MARKS = {"train": "1", "test": "2"}


def read(path, *, root, split) -> Listing:
    """Returns the clips of a subset, sorted by class and then in the order of the file of the class.

    Args:
        path: ends in 'train' or 'test'.
        root: folder of the data set.
        split: 1, 2 or 3.

    Raises:
        DataError: `path` has another ending, the split has no files, or a line is not `clip.avi 0|1|2`.
    """
    subset = os.path.basename(path)
    if subset not in _MARKS:
        raise DataError(f"data.train and data.val must be 'train' or 'test' for HMDB51, not {shown(subset)}.")
    files = _files_by_class(root, split)
    folder = find_folder(root, lambda names: not files.keys().isdisjoint(names)) or root
    entries = []
    for label, file in files.items():
        for line, text in read_lines(file):
            name, _, mark = text.rpartition(" ")
            if not name or mark not in ("0", "1", "2"):
                raise DataError(f"{file} line {line}: expected a clip and 0, 1 or 2, and found {shown(text)}.")
            if mark == _MARKS[subset]:
                name = f"{label}/{name.rstrip()}"
                entries.append(Entry(name, os.path.join(folder, name), label, 0))
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...]:
    """Returns the classes in alphabetical order, because the authors of HMDB51 do not number them."""
    del train
    return tuple(_files_by_class(root, 1))


def _files_by_class(root, split) -> dict[str, str]:
    """Returns class -> path of the file of the class, sorted by class."""
    end = f"_test_split{split}.txt"
    folder = find_folder(root, lambda names: any(name.endswith(end) for name in names))
    if folder is None:
        raise DataError(
            f"Neither {root} nor a folder in it holds a file CLASS{end} of HMDB51 (data.split={split}). Set data.root "
            "to the folder of the data set."
        )
    return {name.removesuffix(end): os.path.join(folder, name) for name in list_folder(folder) if name.endswith(end)}

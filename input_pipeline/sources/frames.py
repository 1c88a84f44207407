"""Videos stored as folders of JPEG frames.

A list with the extension .csv is read as a CSV file (see `csv`), any other list as `lists` reads it.
"""

from input_pipeline.sources.csv import read as read_csv
from input_pipeline.sources.listing import Listing
from input_pipeline.sources.lists import read as read_list

TRAIN, VAL, TEST = ("train.csv", "train.txt"), ("val.csv", "val.txt"), ("test.csv", "test.txt")


def read(path, *, root, split) -> Listing:
    """Returns the folders of a list.

    Raises:
        DataError: see `csv.read` and `lists.read`.
    """
    read_folders = read_csv if path.lower().endswith(".csv") else read_list
    return read_folders(path, root=root, split=split)


def classes(root, train) -> None:
    """Returns None: neither format orders its class names."""

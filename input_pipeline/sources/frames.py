"""Videos that are folders of JPEG frames, listed in a CSV file (see `csv`) or, by any other extension, in a list (see
`lists`)."""

from input_pipeline.sources import csv, lists
from input_pipeline.sources.listing import Listing

TRAIN, VAL = ("train.csv", "train.txt"), ("val.csv", "val.txt")


def read(path, *, root, split) -> Listing:
    """The folders of the list. DataError as for `csv` and `lists`."""
    return (csv if path.lower().endswith(".csv") else lists).read(path, root=root, split=split)


def classes(root, train) -> None:
    """None: neither format gives an order of names."""

"""Shards that `python -m input_pipeline.prepare` has made: train.json, val.json and classes.txt in one folder."""

import os

from input_pipeline.errors import DataError
from input_pipeline.shards import read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train.json",), ("val.json",)


def read(path, *, root, split) -> Listing:
    """The clips of a list. Shards lie beside it; the name of a clip is the one its video had."""
    del root, split
    folder = os.path.dirname(path)
    return Listing(
        tuple(
            Entry(
                row["name"],
                os.path.join(folder, row["shard"]),
                None if row["label"] < 0 else row["label"],
                line,
                position=row["position"],
            )
            for line, row in enumerate(read_rows(path), start=2)
        )
    )  # the first line holds no clip


def classes(root, train):
    """The names in classes.txt, in the order of their labels."""
    path = os.path.join(os.path.dirname(train), "classes.txt")
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(name for name in file.read().split("\n") if name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, which prepare writes beside its lists, cannot be read: {error}.") from None

"""Shards that `python -m input_pipeline.prepare` wrote: train.json, val.json and classes.txt in one folder."""

import os

from input_pipeline.errors import DataError
from input_pipeline.shards import LABELS, read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL, TEST = ("train.json",), ("val.json",), ("test.json",)


def read(path, *, root, split) -> Listing:
    """Returns the clips of a list, by the names of their source videos. The shards are in the folder of the list."""
    del root, split
    folder = os.path.dirname(path)
    return Listing(
        tuple(
            Entry(
                row["name"],
                os.path.join(folder, row["shard"]),
                _label(row),
                line,
                position=row["position"],
                sha256=bytes.fromhex(row["sha256"]),
            )
            for line, row in enumerate(read_rows(path), start=2)  # line 1 is the head of the list and holds no clip
        )
    )


def _label(row: dict) -> int | tuple[int, ...] | None:
    if LABELS in row:
        return tuple(row[LABELS])
    return None if row["label"] < 0 else row["label"]


def classes(root, train) -> tuple[str, ...]:
    """Returns the names in classes.txt, in the order of their labels.

    Raises:
        DataError: classes.txt cannot be read.
    """
    path = os.path.join(os.path.dirname(train), "classes.txt")
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(name for name in file.read().split("\n") if name)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, which prepare writes beside its lists, cannot be read: {error}.") from None

"""Lists of `path label` without a header, as PySlowFast and mmaction2 read them.

The separator is the last blank or comma of a line, so that paths may hold both. Paths are relative to `root` unless
absolute. A label is a name of the class file, where there is one, and otherwise a number from 0.
"""

import os
import re

from input_pipeline.errors import DataError
from input_pipeline.sources.files import read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train.txt", "train.csv"), ("val.txt", "val.csv")

_LINE = re.compile(r"(.*[^\s,])(?:\s*,\s*|\s+)([^\s,]+)")


def read(path, *, root, split) -> Listing:
    """The lines of a list. DataError: a line without a label, or with a frame count before it."""
    del split
    entries = []
    for line, text in read_lines(path):
        match = _LINE.fullmatch(text)
        if not match:
            raise DataError(f"{path} line {line}: expected a path and a label, and found {text!r}.")
        name, label = match.groups()
        video = os.path.join(root, name)
        before = _LINE.fullmatch(name)
        if before and before[2].isdecimal() and not os.path.exists(video):
            raise DataError(
                f"{path} line {line}: {text!r} has a third column, as lists of raw frames have: keep path "
                "and label only, and set data.source='frames' where the path is a folder of frames."
            )
        entries.append(Entry(name, video, label, line))
    return Listing(tuple(entries))


def classes(root, train) -> None:
    """None: such a list gives no names."""

"""Lists with a line `path label` per video and no header, as PySlowFast and mmaction2 read them.

The separator is the last blank or comma of a line, so that paths may hold both. Paths are relative to `root` unless
absolute. A label is a name of the class file if there is one, otherwise a number from 0.
"""

import os
import re

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL, TEST = ("train.txt", "train.csv"), ("val.txt", "val.csv"), ("test.txt", "test.csv")

_LINE = re.compile(r"(.*[^\s,])(?:\s*,\s*|\s+)([^\s,]+)")


def read(path, *, root, split) -> Listing:
    """Returns the lines of a list.

    Raises:
        DataError: a line has no label, or has a frame count before the label.
    """
    del split
    entries = []
    for line, text in read_lines(path):
        match = _LINE.fullmatch(text)
        if not match:
            raise DataError(f"{path} line {line}: expected a path and a label, and found {shown(text)}.")
        name, label = match.groups()
        video = os.path.join(root, name)
        prefix = _LINE.fullmatch(name)
        if prefix and prefix[2].isdecimal() and not os.path.exists(video):
            raise DataError(
                f"{path} line {line}: {shown(text)} has a third column, as lists of raw frames have. Keep only path "
                "and label, and set data.source='frames' if the path is a folder of frames."
            )
        entries.append(Entry(name, video, label, line))
    return Listing(tuple(entries))


def classes(root, train) -> None:
    """Returns None: a list does not order its class names."""


def path_before_label(line: str) -> str:
    """Returns the path in a line of a list, or the whole line if it has no label."""
    match = _LINE.fullmatch(line.strip())
    return match[1] if match else line

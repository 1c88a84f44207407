"""CSV files with the columns `path,label`. The header is optional.

Paths are relative to `root` unless absolute. A label is a name of the class file if there is one, otherwise a number
from 0.
"""

import csv
import os

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train.csv",), ("val.csv",)


def read(path, *, root, split) -> Listing:
    """Returns the rows of a CSV file in UTF-8.

    Raises:
        DataError: a row has no path, or does not have two columns.
    """
    del split
    rows = read_rows(path)
    if rows and rows[0][1] == ["path", "label"]:
        del rows[0]
    for line, row in rows:
        if len(row) != 2 or not row[0]:
            raise DataError(
                f"{path} line {line}: expected two columns, path,label, and found {len(row)}: {shown(','.join(row))}."
            )
    return Listing(tuple(Entry(name, os.path.join(root, name), label.strip(), line) for line, (name, label) in rows))


def classes(root, train) -> None:
    """Returns None: a CSV file does not order its class names."""


def first_column(line: str) -> str:
    """Returns the path in a line of a CSV file, or the whole line if it is not one."""
    try:
        return next(csv.reader([line], strict=True))[0]
    except (csv.Error, StopIteration, IndexError):
        return line

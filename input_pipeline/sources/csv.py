"""CSV files of `path,label`; a first row that reads so is a header. Paths are relative to `root` unless absolute.

A label is a name of the class file, where there is one, and otherwise a number from 0.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.sources.files import read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train.csv",), ("val.csv",)


def read(path, *, root, split) -> Listing:
    """The rows of a CSV file in UTF-8. DataError: a row without a path or with another number of columns than two."""
    del split
    rows = read_rows(path)
    if rows and rows[0][1] == ["path", "label"]:
        del rows[0]
    for line, row in rows:
        if len(row) != 2 or not row[0]:
            raise DataError(
                f"{path} line {line}: expected two columns, path,label, and found {len(row)}: {','.join(row)!r}."
            )
    return Listing(tuple(Entry(name, os.path.join(root, name), label.strip(), line) for line, (name, label) in rows))


def classes(root, train) -> None:
    """None: a CSV file gives no order of its names."""

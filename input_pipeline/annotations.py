"""Manifests: CSV files of `path,label`, checked as a whole before a run starts."""

import csv
import dataclasses
import hashlib
import io
import os

from input_pipeline.errors import DataError


@dataclasses.dataclass(frozen=True)
class Record:
    """One labelled video: `id` is its row in the manifest (from 0), `line` its line in the file (from 1)."""
    id: int
    path: str
    label: int
    line: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The videos of one split.

    `classes` are the names of the labels, None without a class file. `digest` identifies the list: copies of
    a public data set differ in the videos that have since vanished, so that two results are comparable only
    when their digests are equal.
    """
    path: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] | None
    digest: str


def read_classes(path, *, root, num_classes) -> tuple[str, ...]:
    """The names in a class file, one a line, in the order of their labels.

    Raises:
      DataError: the file is missing, repeats a name, or does not hold `num_classes` names.
    """
    path = os.path.join(root, path)
    names = tuple(line.strip() for line in _read(path, "data.classes").split("\n") if line.strip())
    if len(names) != num_classes:
        raise DataError(f"{path} holds {len(names)} class names, but data.num_classes is {num_classes}.")
    if len(set(names)) != len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{path} holds the class name {repeated!r} twice.")
    return names


def read_manifest(path, *, root, num_classes, classes=None, complete=False) -> Manifest:
    """Reads and checks a manifest.

    A first row that reads `path,label` is a header. Paths are relative to `root`, as is the manifest itself,
    unless absolute. A label is a name of the class file, where there is one, and otherwise a number from 0.

    Args:
      path: CSV file in UTF-8, with or without a byte order mark.
      root: folder.
      num_classes: labels lie in [0, num_classes).
      classes: class file, one name a line, or None.
      complete: without a class file, also refuse a `num_classes` that is not the largest label + 1. For the
        training split: a head wider than the labels trains without complaint and is nearly always a mistake.

    Raises:
      DataError: with the file and line of the first mistake.
    """
    path = os.path.join(root, path)
    names = None if classes is None else read_classes(classes, root=root, num_classes=num_classes)
    number_of = {name: label for label, name in enumerate(names or ())}
    records, written, first_line = [], [], {}
    for line, row in _rows(path):
        if len(row) != 2 or not row[0]:
            raise DataError(f'{path} line {line}: expected two columns, path,label, and found {len(row)}: '
                            f'{",".join(row)!r}.')
        label = number_of.get(row[1].strip())
        if label is None:
            label = _number(row[1], f"{path} line {line}", num_classes, names)
        video = os.path.join(root, row[0])
        if video in first_line:
            raise DataError(f"{path} line {line}: {row[0]} is already on line {first_line[video]}.")
        first_line[video] = line
        records.append(Record(len(records), video, label, line))
        written.append(f"{row[0]}\0{label}\n")
    if not records:
        raise DataError(f"{path} lists no videos.")
    _check_files(path, records)
    largest = max(record.label for record in records)
    if complete and names is None and largest + 1 != num_classes:
        raise DataError(f"{path}: the largest label is {largest}, but data.num_classes is {num_classes}: set "
                        f"data.num_classes={largest + 1}, or give data.classes if some classes have no "
                        "video.")
    digest = hashlib.sha256("".join(written).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Manifest(path, tuple(records), names, digest)


def _read(path, field):
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} ({field}) cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({field}) is not UTF-8 text (byte {error.start}).") from None


def _rows(path):
    """Pairs (line number, row) without the header and without blank lines."""
    reader = csv.reader(io.StringIO(_read(path, "manifest"), newline=""), strict=True)
    try:
        for number, row in enumerate(reader):
            if row and not (number == 0 and row == ["path", "label"]):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}.") from None


def _number(text, where, num_classes, names):
    try:
        label = int(text)
    except ValueError:
        kind = "a name of data.classes" if names else "a number, and data.classes gives no names"
        raise DataError(f"{where}: the label {text!r} is not {kind}.") from None
    if not 0 <= label < num_classes:
        raise DataError(f"{where}: label {label} is out of range for data.num_classes={num_classes} "
                        f"(labels are 0 to {num_classes - 1}).")
    return label


def _check_files(path, records):
    # One listing per folder: a look at each of a quarter of a million files takes minutes on a network disk.
    listings = {}
    missing = []
    for record in records:
        folder, name = os.path.split(record.path)
        if folder not in listings:
            try:
                with os.scandir(folder or ".") as entries:
                    listings[folder] = {entry.name for entry in entries}
            except OSError:
                listings[folder] = set()
        if name not in listings[folder]:
            missing.append(record)
    if missing:
        others = f", nor do {len(missing) - 1} others of this list" if len(missing) > 1 else ""
        raise DataError(f"{path} line {missing[0].line}: {missing[0].path} does not exist{others}.")

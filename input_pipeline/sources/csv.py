"""CSV files with the columns `path,label`, and with `start,end` for labelled parts of videos, in seconds.

A header names the columns, in any order. Without a header, the columns are `path,label` or `path,label,start,end`.
Paths are relative to `root` unless absolute. A label is a name of the class file if there is one, otherwise a number
from 0.
"""

import csv
import functools
import math
import os
import re

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import is_picture, is_video, parse_rows, read_text
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL, TEST = ("train.csv",), ("val.csv",), ("test.csv",)

_COLUMNS = ("path", "label", "start", "end")
_FORMS = (_COLUMNS[:2], _COLUMNS)  # without a header
# Names of columns in lists for other programs. A first row of nothing else is a header.
_HEADER_WORDS = frozenset(
    "path label start end category class class_name clip end_time file file_name file_path filename filepath id labels "
    "label_name name start_time target time video video_id video_name video_path".split()
)
_PART = re.compile(r"(.+)#t=((?:[0-9]+(?:\.[0-9]+)?)?),((?:[0-9]+(?:\.[0-9]+)?)?)", re.DOTALL)
_SEPARATORS = {";": "semicolons", "\t": "tabs", " ": "blanks"}
_ZIP = "PK\3\4"


def read(path, *, root, split) -> Listing:
    """Returns the rows of a CSV file in UTF-8. Paths may hold other bytes, if they name files.

    Raises:
        DataError: a row has no path, has other columns than the rows before it, or gives a part that cannot be.
    """
    del split
    return _parse(path, root, read_text(path, errors="surrogateescape"))


# The start of a run reads each list several times, and a list of 200,000 lines takes 2 s.
@functools.lru_cache(maxsize=len((TRAIN, VAL, TEST)))
def _parse(path, root, text: str) -> Listing:
    columns, rows = _columns(path, parse_rows(path, text, root))
    entries = []
    for line, row in rows:
        _refuse_other_separator(path, line, row)
        if len(row) != len(columns) or not row[columns.index("path")]:
            raise DataError(
                f"{path} line {line}: expected {_words(len(columns))} columns, {','.join(columns)}, and found "
                f"{len(row)}: {shown(','.join(row))}."
            )
        entries.append(_entry(path, root, line, dict(zip(columns, row, strict=True))))
    return Listing(tuple(entries))


def classes(root, train) -> None:
    """Returns None: a CSV file does not order its class names."""


def part_name(name: str, start: float | None, end: float | None) -> str:
    """Returns the name of a part of a video, a media fragment such as `long.mp4#t=1.5,4`; `name` if there is none."""
    if start is None and end is None:
        return name
    first, last = ("" if seconds is None else repr(seconds).removesuffix(".0") for seconds in (start, end))
    return f"{name}#t={first},{last}"


def split_part(name: str) -> tuple[str, float | None, float | None]:
    """Returns the path, start and end of what `part_name` returned. A name of another form, or of a file, is a path."""
    match = None if os.path.exists(name) else _PART.fullmatch(name)
    if match is None:
        return name, None, None
    start, end = (float(seconds) if seconds else None for seconds in match.groups()[1:])
    return match[1], start, end


def header_of(line: str) -> tuple[str, ...]:
    """Returns the names of the columns of a header, such as `path` or `path,label,start,end`, or ()."""
    names = tuple(name.strip().lower() for name in _fields(line))
    return names if "path" in names and set(names) <= set(_COLUMNS) else ()


def listed_part(path, number: int, line: str, columns: tuple[str, ...]) -> tuple[str, float | None, float | None]:
    """Returns the path, start and end in a line of a CSV file of videos, of which labels may be unknown.

    Args:
        path: the CSV file.
        number: the number of the line.
        line: the line. It may be the path alone, also without the quotes that a path with commas needs.
        columns: what `header_of` returned for the first line.
    Raises:
        DataError: the part cannot be.
    """
    fields = _fields(line)
    if len(fields) != len(columns) and len(fields) != len(_COLUMNS):
        return fields[0], None, None
    row = dict(zip(columns if len(fields) == len(columns) else _COLUMNS, fields, strict=True))
    return row["path"], *_span(path, number, row)


def _fields(line: str) -> list[str]:
    """Returns the fields of a line of a CSV file, or the whole line if it is not one."""
    try:
        return next(csv.reader([line], strict=True)) or [line]
    except (csv.Error, StopIteration):
        return [line]


def _columns(path, rows) -> tuple[tuple[str, ...], list]:
    """Returns the names of the columns, and the rows without a header."""
    if not rows:
        return _COLUMNS[:2], rows
    line, first = rows[0]
    header = tuple(name.strip().lower() for name in first)
    if {"path", "label"}.issubset(header) or _HEADER_WORDS.issuperset(header):
        is_known = set(_FORMS[0]) <= set(header) <= set(_COLUMNS) and len(set(header)) == len(header)
        if not is_known:
            raise DataError(
                f"{path} line {line}: the header is {shown(','.join(first))}. The columns must be named path and "
                "label, and start and end for parts of videos, each once."
            )
        return header, rows[1:]
    return next((form for form in _FORMS if len(form) == len(first)), _FORMS[0]), rows


def _refuse_other_separator(path, line: int, row: list[str]) -> None:
    """Raises DataError if a row of one field has columns that are not separated by commas."""
    if len(row) > 1:
        return
    if row[0].startswith(_ZIP):
        raise DataError(f"{path} is a spreadsheet or an archive, and no text. Export it as CSV in UTF-8.")
    sign = next((sign for sign in _SEPARATORS if sign in row[0]), None)
    if sign is not None:
        raise DataError(
            f"{path} line {line}: {shown(row[0])} is separated by {_SEPARATORS[sign]}. Separate the two columns, path "
            "and label, by a comma."
        )


def absent_advice(name: str, root) -> str:
    """Returns a sentence, after a blank, on the path of a file that does not exist, or ""."""
    if "\\" in name:
        return " Separate folders by / in a list."
    if name != name.strip():
        return " The path begins or ends with a blank."
    return "" if os.path.isabs(name) else f" Paths are relative to data.root={root}."


def _entry(path, root, line: int, row: dict[str, str]) -> Entry:
    start, end = _span(path, line, row)
    name = row["path"]
    if is_video(row["label"].strip()) and not is_video(name.strip()):
        raise DataError(
            f"{path} line {line}: {shown(row['label'])} stands in the column label, and {shown(name)} in the column "
            "path. Swap the columns."
        )
    if is_picture(name) and not name.lower().endswith(".gif"):  # may be a video
        raise DataError(
            f"{path} line {line}: {shown(name)} is a picture. List videos, or folders of numbered JPEG frames."
        )
    return Entry(part_name(name, start, end), os.path.join(root, name), row["label"].strip(), line, start, end)


def _span(path, line: int, row: dict[str, str]) -> tuple[float | None, float | None]:
    """Returns the start and end of the part in a row."""
    start, end = (_seconds(path, line, name, row.get(name, "")) for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise DataError(
            f"{path} line {line}: end={end:g} is not after start={start or 0:g}. Both are seconds from the beginning "
            "of the video."
        )
    return start, end


def _seconds(path, line: int, name: str, text: str) -> float | None:
    """Returns the seconds in a field, or None if it is empty."""
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{path} line {line}: {name} must be seconds from 0, such as 12.5, but is {shown(text)}.")
    return seconds


def _words(count: int) -> str:
    return {2: "two", 3: "three", 4: "four"}[count]

"""Kinetics-400, 600 and 700 (Kay et al., 2017) with the lists of their authors.

A list has the header `label,youtube_id,time_start,time_end,split`, with more columns in some versions and without a
label in some test lists. The videos are anywhere below `root`, in class folders or not. Their names are
`ID_000012_000022.mp4`, already cut to the clip, or `ID.mp4`, cut or whole; the duration decides which when the file is
opened. A file may have any video extension, and a video may be a folder of frames.
"""

from collections.abc import Iterator
from typing import NamedTuple

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import find_videos, read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN = ("train.csv", "annotations/train.csv")
VAL = ("val.csv", "validate.csv", "annotations/val.csv", "annotations/validate.csv")
TEST = ("test.csv", "annotations/test.csv")

_REQUIRED = ("youtube_id", "time_start", "time_end")


class _Clip(NamedTuple):
    """A row of a list; `name` is the file name of the cut clip without its extension."""

    line: int
    video: str
    start: float
    end: float
    name: str
    label: str | None


def read(path, *, root, split) -> Listing:
    """Returns the videos of a list that are below `root`. The others are missing.

    Raises:
        DataError: the header or a row is not in the format of Kinetics, or two files are the same video.
    """
    del split
    clips = [_clip(path, line, row) for line, row in _rows(path)]
    found = find_videos(root, {clip.video for clip in clips} | {clip.name for clip in clips})
    entries, missing = [], []
    for clip in clips:
        if clip.name in found:
            entries.append(Entry(clip.name, found[clip.name], clip.label, clip.line))
        elif clip.video in found:
            times = clip.start, clip.end
            entries.append(Entry(clip.name, found[clip.video], clip.label, clip.line, *times, may_be_cut=True))
        else:
            missing.append(clip.name)
    return Listing(tuple(entries), tuple(missing))


def classes(root, train) -> tuple[str, ...] | None:
    """Returns the labels of the list in alphabetical order, as the authors do not number them; None without labels."""
    del root
    return tuple(sorted({row["label"] for _, row in _rows(train) if row.get("label")})) or None


def _clip(path, line, row) -> _Clip:
    try:
        start, end = float(row["time_start"]), float(row["time_end"])
        name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
    except (ValueError, OverflowError):
        raise DataError(
            f"{path} line {line}: time_start and time_end must be seconds, but are "
            f"{shown(row['time_start'])} and {shown(row['time_end'])}."
        ) from None
    return _Clip(line, row["youtube_id"], start, end, name, row.get("label") or None)


def _rows(path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {column: text}) of the rows after the header."""
    rows = read_rows(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    if not set(_REQUIRED) <= set(header):
        raise DataError(
            f"{path} line 1: expected the header of Kinetics, [label,]{','.join(_REQUIRED)},..., and found "
            f"{shown(','.join(header))}."
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line}: expected {len(header)} columns, as in the header, and found {len(row)}."
            )
        yield line, {name: text.strip() for name, text in zip(header, row, strict=True)}

"""Kinetics-400, 600 and 700 (Kay et al., 2017) with the lists of their authors.

A list has the header `label,youtube_id,time_start,time_end,split`, with more columns in some versions and without a
label in some test lists. The videos lie anywhere below `root`, in class folders or not: `ID_000012_000022.mp4`, cut
already, or `ID.mp4`, cut or whole (which shows when it is opened), with any extension, or as folders of frames.
"""

from input_pipeline.errors import DataError
from input_pipeline.sources.files import find_videos, read_rows
from input_pipeline.sources.listing import Entry, Listing

TRAIN = ("train.csv", "annotations/train.csv")
VAL = ("val.csv", "validate.csv", "annotations/val.csv", "annotations/validate.csv")

_NEEDED = ("youtube_id", "time_start", "time_end")


def read(path, *, root, split) -> Listing:
    """The videos of a list that lie below `root`; the others are missing.

    Raises:
      DataError: the header or a row is not that of Kinetics, or two files are the same video.
    """
    del split
    clips = []
    for line, row in _rows(path):
        try:
            start, end = float(row["time_start"]), float(row["time_end"])
            clips.append(
                (
                    line,
                    row["youtube_id"],
                    start,
                    end,
                    f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}",
                    row.get("label") or None,
                )
            )
        except (ValueError, OverflowError):
            raise DataError(
                f"{path} line {line}: time_start and time_end must be seconds, but are "
                f"{row['time_start']!r} and {row['time_end']!r}."
            ) from None
    found = find_videos(root, {video for _, video, *_ in clips} | {name for *_, name, _ in clips})
    entries, missing = [], []
    for line, video, start, end, name, label in clips:
        if name in found:
            entries.append(Entry(name, found[name], label, line))
        elif video in found:
            entries.append(Entry(name, found[video], label, line, start, end))
        else:
            missing.append(name)
    return Listing(tuple(entries), tuple(missing))


def classes(root, train) -> tuple[str, ...] | None:
    """The labels of the list in alphabetical order: its authors number none. None where it has no labels."""
    del root
    return tuple(sorted({row["label"] for _, row in _rows(train) if row.get("label")})) or None


def _rows(path):
    """Pairs (line number, dictionary of the row by the header's names)."""
    rows = read_rows(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    if not set(_NEEDED) <= set(header):
        raise DataError(
            f"{path} line 1: expected the header of Kinetics, [label,]{','.join(_NEEDED)},..., and found "
            f"{','.join(header)!r}."
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {line}: expected {len(header)} columns, as in the header, and found {len(row)}."
            )
        yield line, {name: text.strip() for name, text in zip(header, row, strict=True)}

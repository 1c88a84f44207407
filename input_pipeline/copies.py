"""Finds videos that are copies of others: people copy a file into two class folders, or into both parts."""

import collections
import filecmp
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence

from input_pipeline.annotations import Record

_HEAD = 2**16  # bytes


def copies(records: Sequence[Record], statuses: Sequence[os.stat_result | None]) -> list[tuple[Record, Record]]:
    """Returns (video, copy of it) for all files with the same content as one before. Parts of videos are left out.

    Only files of the same size are read, and only those that begin alike are read to their ends.

    Args:
        records: videos.
        statuses: the status of the file of each, see `remarks.file_status`.
    """
    of_size = collections.defaultdict(list)
    for record, status in zip(records, statuses, strict=True):
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size and not record.is_part:
            of_size[status.st_size].append(record)
    return [pair for alike in of_size.values() if len(alike) > 1 for pair in _equal(alike)]


def _equal(records: Iterable[Record]) -> Iterable[tuple[Record, Record]]:
    before: dict[bytes, list[Record]] = collections.defaultdict(list)  # digest of the first bytes -> distinct files
    for record in records:
        try:
            with open(record.path, "rb") as file:
                distinct = before[hashlib.sha256(file.read(_HEAD)).digest()]
            same = next((other for other in distinct if filecmp.cmp(other.path, record.path, shallow=False)), None)
        except OSError:
            continue  # `check` and the run name files that cannot be read
        if same is None:
            distinct.append(record)
        else:
            yield same, record

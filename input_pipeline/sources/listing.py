"""The result of reading a list: its videos, in the order of the list."""

from typing import NamedTuple


class Entry(NamedTuple):
    """One video of a list.

    Attributes:
        name: identifies the video within the data set, independently of where a copy is stored. Part of the digest.
        path: a video file, a folder of frames, or a shard.
        label: class name, class number in the order of `Source.classes`, or None if a test list gives no label. A text
            may hold several names or numbers, joined by semicolons; several class numbers are a tuple.
        line: line in the list, from 1, or 0 if the list has no lines.
        start, end: seconds of the clip within the file. None: from the beginning, and to the end.
        position: row in the shard `path`, or None if `path` is a file or a folder.
        feature: name of the feature that holds the frames, if TensorFlow Datasets wrote the shard.
        sha256: SHA-256 of the row of a prepared shard, or b"" if it is unknown.
        may_be_cut: whether the file may hold the clip alone, so that `start` and `end` apply only to a longer file.
    """

    name: str
    path: str
    label: str | int | tuple[int, ...] | None
    line: int
    start: float | None = None
    end: float | None = None
    position: int | None = None
    feature: str = ""
    sha256: bytes = b""
    may_be_cut: bool = False


class Listing(NamedTuple):
    """The videos of a list.

    Attributes:
        entries: the videos. Sources that name files in the list do not check that the files exist.
        missing: names of the videos that a source searched for below the root and did not find.
    """

    entries: tuple[Entry, ...]
    missing: tuple[str, ...] = ()

"""What every source gives: the videos of one list, in its order."""

from typing import NamedTuple


class Entry(NamedTuple):
    """One video of a list.

    Attributes:
      name: identifies the video within the data set, wherever a copy of it lies; part of the digest.
      path: opens the video: a file, a folder of frames, or a shard.
      label: name of the class, or its number in the order of the source's classes, or None in a test list without.
      line: of the list, from 1; 0 where it has no lines.
      start, end: seconds, the clip's part of the file, if that turns out to hold more; None for all of it.
      position: row in the shard `path`; None for a file or folder of its own.
      feature: of a row that TensorFlow Datasets wrote, the name of the one that holds the frames.
    """

    name: str
    path: str
    label: str | int | None
    line: int
    start: float | None = None
    end: float | None = None
    position: int | None = None
    feature: str = ""


class Listing(NamedTuple):
    """The videos of a list that are there, and the names of those that were looked for and not found."""

    entries: tuple[Entry, ...]
    missing: tuple[str, ...] = ()

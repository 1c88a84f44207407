"""Manifests: the videos of one split with their labels, read and checked before a run starts."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.labels import (
    MANY,
    ONE,
    LabelNumbers,
    found_names,
    label_text,
    refuse_separator,
    require_many,
    where,
)
from input_pipeline.sources import SOURCES, Entry, Listing, Source
from input_pipeline.sources.csv import absent_advice, part_name
from input_pipeline.sources.files import read_text


@dataclasses.dataclass(frozen=True)
class Record:
    """One video.

    Attributes:
        id: row in the manifest, from 0.
        path: a video file, a folder of JPEG frames, or a shard.
        label: class number, or -1 if a test list gives no label or the clips of the data have several labels.
        line: line in the list, from 1, or 0 if the list has no lines.
        start, end: seconds of the clip within the file. None: from the beginning, and to the end.
        position: row in the shard `path`, or None if `path` is a file or a folder.
        feature: name of the feature that holds the frames, if TensorFlow Datasets wrote the shard.
        name: identifies the video within the data set, independently of where this copy of it is stored.
        sha256: SHA-256 of the row of a prepared shard, or b"" if it is unknown.
        frames: the frames of a video in memory, uint8 (t y x 3), or None if they are read from `path`.
        labels: class numbers in ascending order with data.labels='many', () for a clip that shows none of the classes.
            None with one label, or if a test list gives no labels.
        may_be_cut: whether the file may hold the clip alone. Then `start` and `end` apply only if it holds more.
    """

    id: int
    path: str
    label: int
    line: int
    start: float | None = None
    end: float | None = None
    position: int | None = None
    feature: str = ""
    name: str = ""
    sha256: bytes = b""
    frames: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    labels: tuple[int, ...] | None = None
    may_be_cut: bool = False

    @property
    def has_label(self) -> bool:
        return self.label >= 0 or self.labels is not None

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """The class numbers of the labels, whether the data have one label a clip or several."""
        if self.labels is not None:
            return self.labels
        return (self.label,) if self.label >= 0 else ()

    @property
    def is_part(self) -> bool:
        """Whether the clip is a labelled part of a video rather than a file."""
        return not self.may_be_cut and (self.start is not None or self.end is not None)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The videos of one split.

    Attributes:
        path: path of the list.
        records: the videos.
        classes: class names in the order of the labels, or None if the labels are only numbers.
        digest: identifies the videos, their labels and their order. Copies of a public data set differ, because
            videos vanish from the web. Two results are comparable only if their digests are equal.
        missing: names of the listed videos that do not exist and were left out.
        excluded: names of the listed videos that data.exclude left out.
        unmatched: lines of data.exclude that name no video of this list.
    """

    path: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] | None
    digest: str
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def relative_path(entry: Entry | Record, root) -> str:
    """Returns the path of a video from `root`; data.exclude uses this form.

    The path of a shard ends with `#ROW`, and that of a part of a video with `#t=START,END` in seconds. A path outside
    `root` is returned as it is.
    """
    path = file_path(entry, root)
    if entry.position is not None:
        return f"{path}#{entry.position}"
    return path if entry.may_be_cut else part_name(path, entry.start, entry.end)


def _of_all_parts(entry: Entry, root) -> str:
    return relative_path(entry, root) if entry.position is not None else file_path(entry, root)


def file_path(entry: Entry | Record, root) -> str:
    """Returns the path of the file of a video from `root`, or as it is if it is outside `root`."""
    relative = os.path.relpath(entry.path, root)
    return entry.path if relative.startswith(os.pardir + os.sep) else relative


def read_classes(path, *, root, num_classes) -> tuple[str, ...]:
    """Returns the class names in a class file, one name per line, in the order of the labels.

    Raises:
        DataError: the file does not exist, repeats a name, or does not hold `num_classes` names.
    """
    names = read_class_file(path, root)
    if len(names) != num_classes:
        path = os.path.join(root, path)
        raise DataError(f"{path} holds {len(names)} class names, but data.num_classes is {num_classes}.")
    return names


def read_class_file(path, root) -> tuple[str, ...]:
    """Returns the names in a class file of any number of classes, see `read_classes`. A tuple holds the names."""
    if isinstance(path, tuple):
        return path
    path = os.path.join(root, path)
    text = read_text(path, "Set data.classes to a file with one class name per line.", "surrogateescape")
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if len(set(names)) != len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{path} holds the class name {shown(repeated)} twice.")
    return names


def class_names(lists, *, source="csv", root, num_classes, classes=None, split=1, labels=ONE) -> tuple[str, ...] | None:
    """Returns the class names by label: from the class file `classes` if given, otherwise from the source.

    With several labels a clip, and for 'auto', a source that does not order its class names has those in its list.

    Args:
        lists: file names of lists. If the source takes the names from a list, it reads the first that exists.
        source, root, num_classes, classes, split, labels: see `read_manifest`.

    Returns:
        The names by label, or None if the labels are only numbers.

    Raises:
        DataError: the number of names is not `num_classes`, or the file that holds them has a mistake.
    """
    if classes is not None:
        names: tuple[str, ...] | None = read_classes(classes, root=root, num_classes=num_classes)
        if labels == MANY:
            refuse_separator(names, os.path.join(root, classes) if isinstance(classes, str) else "The run")
        return names
    reader, path = _find_source(source), _find_list(lists, root, split)
    names = reader.classes(root, path)
    if names is None and (labels == MANY or source == "auto"):
        names = found_names(path, reader.read(path, root=root, split=split).entries, labels)
    if names is not None and len(names) != num_classes:
        advice = " Leave out data.num_classes: it is read from the data." if source == "auto" else ""
        raise DataError(
            f"The data in {root} (data.source={source}) have {len(names)} classes, but data.num_classes is "
            f"{num_classes}.{advice}"
        )
    return names


def read_manifest(
    path,
    *,
    source="csv",
    root,
    num_classes,
    classes=None,
    train=(),
    split=1,
    complete=False,
    missing="error",
    exclude=None,
    labels=ONE,
) -> Manifest:
    """Reads and checks a manifest.

    Args:
        path: the list, relative to `root` unless absolute, or a sequence of names of which the first that exists is
            read.
        source: kind of the list, a key of `sources.SOURCES`.
        root: folder of the data set.
        num_classes: labels are 0 to num_classes - 1.
        classes: class file with one name per line, or None. Its order decides the label of each class. A tuple holds
            the classes of a run by which videos are evaluated: with 'auto', labels must be names of these classes.
        train: the training list, as `path`. Some sources find their classes there. (): `path` itself.
        split: number of the official split, for data sets with several.
        complete: refuse a video without a label and, if there are no class names, a `num_classes` that is not the
            largest label + 1. Meant for the training split: a classifier with more outputs than classes trains without
            an error, but is nearly always a mistake.
        missing: 'error', or 'leave_out' to leave out videos that do not exist.
        exclude: file of videos to leave out, one `relative_path` per line, or None.
        labels: 'one' label a clip, or 'many', joined by semicolons.

    Raises:
        DataError: the list has a mistake. The message names the file and line of the first one. It is also raised if
            `labels` is 'many' and the source has one label a video.
    """
    reader, lists = _find_source(source), _as_tuple(train) + _as_tuple(path)
    path = _find_list(path, root, split, source)
    if labels == MANY:
        require_many(source, path)
    listing = reader.read(path, root=root, split=split)
    names = class_names(
        lists, source=source, root=root, num_classes=num_classes, classes=classes, split=split, labels=labels
    )
    source_names: Sequence[str] = ()
    if classes is not None and any(isinstance(entry.label, (int, tuple)) for entry in listing.entries):
        source_names = reader.classes(root, _find_list(lists, root, split)) or ()
    # Own data hold names: with the classes of a run, a folder `0` is no number of a class.
    has_class_file = classes is not None and (isinstance(classes, str) or source != "auto")
    numbers = LabelNumbers(names or (), source_names, num_classes, has_class_file, of_run=isinstance(classes, tuple))
    convert = numbers.class_numbers if labels == MANY else numbers.class_number
    found = [convert(entry, path, required=complete) for entry in listing.entries]
    _refuse_empty_and_repeated(path, listing)
    chosen, absent, excluded, unmatched = _choose(path, listing, found, root, missing, exclude)
    if complete and names is None:
        _require_largest(path, found, num_classes)
    return Manifest(path, _records(chosen), names, digest(chosen), listing.missing + absent, excluded, unmatched)


def _require_largest(path, labels: list, num_classes: int) -> None:
    """Raises DataError unless the largest of the class numbers in a training list is `num_classes` - 1."""
    numbers = [number for label in labels for number in (label if isinstance(label, tuple) else (label,))]
    if not numbers:
        raise DataError(f"{path}: none of its videos has a label. Write the labels into the column after the path.")
    largest = max(numbers)
    if largest + 1 != num_classes:
        raise DataError(
            f"{path}: the largest label is {largest}, but data.num_classes is {num_classes}. Set "
            f"data.num_classes={largest + 1}, or set data.classes if some classes have no video."
        )


def _find_source(name) -> Source:
    if name not in SOURCES:
        raise DataError(f"data.source must be one of {', '.join(SOURCES)}, but is {name!r}.")
    return SOURCES[name]


def _as_tuple(names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _find_list(names, root, split, source=None) -> str:
    """Returns the path of the first list that exists, or the path of the first name if no list exists.

    Raises:
        DataError: no list exists, there are several names, and `source` is given.
    """
    names = [name.replace("{split}", str(split)) for name in _as_tuple(names)]
    paths = [os.path.join(root, name) if name != os.curdir else os.fspath(root) for name in names]
    existing = [path for path in paths if os.path.exists(path)]
    if source and not existing and len(paths) > 1:
        raise DataError(
            f"There is no {' or '.join(paths)} (data.source={source}). Set data.root to the folder of the "
            "data set, or data.train and data.val to its lists."
        )
    return (existing or paths)[0]


def _refuse_empty_and_repeated(path, listing: Listing) -> None:
    if not listing.entries and not listing.missing:
        raise DataError(f"{path} lists no videos.")
    first: dict[tuple, Entry] = {}
    for entry in listing.entries:
        before = first.setdefault((entry.path, entry.start, entry.end, entry.position), entry)
        if before is not entry:
            repeated = f"{entry.name} is already on line {before.line}" if entry.line else "this video is listed twice"
            other = f", with the label {shown(before.label)}" if entry.label != before.label else ""
            raise DataError(f"{where(path, entry)}: {repeated}{other}. List it once.")


def _choose(path, listing: Listing, labels, root, missing, exclude):
    """Returns (entry, label) of the videos to use, the names of the absent and of the excluded ones, and the lines of
    data.exclude that name no video."""
    line_of = _read_excluded(exclude, root) if exclude else {}
    # A line names a video, one of its parts, or all of them.
    paths = {entry: {relative_path(entry, root), _of_all_parts(entry, root)} for entry in listing.entries if line_of}
    found = {entry: lines for entry, names in paths.items() if (lines := names & line_of.keys())}
    excluded = found.keys()
    unmatched = set(line_of.values()) - {line_of[line] for lines in found.values() for line in lines}
    absent = _absent_paths(entry for entry in listing.entries if entry not in excluded)
    if missing == "error":
        _require_all(path, root, listing, absent)
    chosen = [
        (entry, label)
        for entry, label in zip(listing.entries, labels, strict=True)
        if entry not in excluded and entry.path not in absent
    ]
    if not chosen:
        raise DataError(
            f"{path}: all of its {len(listing.entries) + len(listing.missing)} videos are missing"
            f"{' or excluded' if excluded else ''}. Set data.root={root} to the folder of the videos."
        )
    return (
        chosen,
        tuple(entry.name for entry in listing.entries if entry.path in absent),
        tuple(entry.name for entry in listing.entries if entry in excluded),
        tuple(line for line in dict.fromkeys(line_of.values()) if line in unmatched),
    )


def _read_excluded(path, root) -> dict[str, str]:
    """Returns {`relative_path`: line} of a file.

    A line is such a path, or the same path in another form: absolute, or beginning with ./. File names may hold any
    bytes, so the file need not be valid UTF-8. It may have the line ends of Windows.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = dict.fromkeys(line.removesuffix("\r") for line in file.read().split("\n"))
    except OSError as error:
        raise DataError(f"{path} (data.exclude) cannot be read: {error.strerror}.") from None
    line_of = {line: line for line in lines if line}
    for line in list(line_of):
        line_of.setdefault(os.path.relpath(os.path.join(root, line), root), line)
    return line_of


def _absent_paths(entries: Iterable[Entry]) -> set[str]:
    """Returns the paths that do not exist."""
    # Each folder is listed once: 250,000 calls of os.path.exists take minutes on a network disk.
    listings: dict[str, set[str]] = {}
    absent = set()
    for entry in entries:
        folder, name = os.path.split(entry.path.rstrip("/"))
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder or "."))
            except (OSError, ValueError):  # ValueError: it has a null character
                listings[folder] = set()
        if name not in listings[folder]:
            absent.add(entry.path)
    return absent


def _require_all(path, root, listing: Listing, absent) -> None:
    absent_entries = [entry for entry in listing.entries if entry.path in absent]
    if absent_entries:
        first, others = absent_entries[0], len(absent_entries) - 1
        more = f", nor {'does' if others == 1 else 'do'} {others} more of this list" if others else ""
        advice = absent_advice(file_path(first, root), root) if path.endswith(".csv") else ""
        raise DataError(f"{where(path, first)}: {first.path} does not exist{more}.{advice}")
    if listing.missing:
        count = len(listing.entries) + len(listing.missing)
        raise DataError(
            f"{path}: {len(listing.missing)} of {count} videos were not found below {root}, for example "
            f"{listing.missing[0]}. Set data.missing=leave_out to leave them out."
        )


def _records(chosen: list[tuple[Entry, Any]]) -> tuple[Record, ...]:
    return tuple(
        Record(
            number,
            entry.path,
            label if isinstance(label, int) else -1,
            entry.line,
            entry.start,
            entry.end,
            entry.position,
            entry.feature,
            entry.name,
            entry.sha256,
            labels=label if isinstance(label, tuple) else None,
            may_be_cut=entry.may_be_cut,
        )
        for number, (entry, label) in enumerate(chosen)
    )


def digest(chosen: Iterable[tuple[Entry | Record, Any]]) -> str:
    """Returns what identifies some videos, their labels and their order, see `Manifest`."""
    content = "".join(f"{entry.name}\0{label_text(label)}\n" for entry, label in chosen)
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]

"""Manifests: the videos of one split with their labels, checked as a whole before a run starts."""

import dataclasses
import hashlib
import os

from input_pipeline.errors import DataError
from input_pipeline.sources import SOURCES
from input_pipeline.sources.files import read_text


@dataclasses.dataclass(frozen=True)
class Record:
    """One video.

    Attributes:
      id: its row in the manifest, from 0.
      path: a video file, a folder of JPEG frames, or a shard.
      label: number of its class, -1 where a test list gives none.
      line: its line in the file of the list, from 1; 0 where that has no lines.
      start, end: seconds, the clip's part of the file, if that turns out to hold more; None for all of it.
      position: row in the shard `path`; None for a file or folder of its own.
      feature: of a row that TensorFlow Datasets wrote, the name of the one that holds the frames.
      name: identifies the video within the data set, wherever that lies.
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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The videos of one split.

    Attributes:
      path: of the list.
      records: the videos.
      classes: the names of the labels, None where there are only numbers.
      digest: identifies the list. Copies of a public data set differ in the videos that have since vanished, so
        that two results are comparable only when their digests are equal.
      missing: names of the videos that are not there and were left out.
      excluded: names of the videos that were left out as told.
    """

    path: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] | None
    digest: str
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def place(entry, root) -> str:
    """Where the video of an entry or record lies from `root`, with its row in a shard: how `check` lists it."""
    path = os.path.relpath(entry.path, root)
    if path.startswith(os.pardir + os.sep):
        path = entry.path
    return path if entry.position is None else f"{path}#{entry.position}"


def read_classes(path, *, root, num_classes) -> tuple[str, ...]:
    """The names in a class file, one a line, in the order of their labels.

    Raises:
      DataError: the file is missing, repeats a name, or does not hold `num_classes` names.
    """
    path = os.path.join(root, path)
    names = tuple(line.strip() for line in read_text(path, "data.classes").split("\n") if line.strip())
    if len(names) != num_classes:
        raise DataError(f"{path} holds {len(names)} class names, but data.num_classes is {num_classes}.")
    if len(set(names)) != len(names):
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{path} holds the class name {repeated!r} twice.")
    return names


def class_names(lists, *, source="csv", root, num_classes, classes=None, split=1) -> tuple[str, ...] | None:
    """The names of the labels: those of the class file `classes`, otherwise those that the source's authors give.

    Args:
      lists: names tried in order; the first list that exists names the classes where no other file does.
      source, root, num_classes, classes, split: as for `read_manifest`.

    Returns:
      Names by label, or None where there are only numbers.

    Raises:
      DataError: there are not `num_classes` of them, or the file that holds them has a mistake.
    """
    if classes is not None:
        return read_classes(classes, root=root, num_classes=num_classes)
    names = _source(source).classes(root, _find(lists, root, split))
    if names is not None and len(names) != num_classes:
        raise DataError(
            f"The {source} data in {root} have {len(names)} classes, but data.num_classes is {num_classes}."
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
) -> Manifest:
    """Reads and checks a manifest.

    Args:
      path: the list, relative to `root` unless absolute, or several names tried in order.
      source: kind of the list, a key of `sources.SOURCES`.
      root: folder of the data set.
      num_classes: labels lie in [0, num_classes).
      classes: class file, one name a line, or None. Its order of the classes is the one that counts.
      train: the training list, one name or several, where sources find their classes; () for `path` itself.
      split: number of the official split, for data sets with several.
      complete: for the training split. Refuses a video without a label, and where there are no class names also a
        `num_classes` that is not the largest label + 1: a head wider than the labels trains without complaint and
        is nearly always a mistake.
      missing: 'error', or 'leave_out' for videos that are not there.
      exclude: file of videos to leave out, one a line as `place` names them, or None.

    Raises:
      DataError: with the file and line of the first mistake.
    """
    module, lists = _source(source), _several(train) + _several(path)
    path = _find(path, root, split, source)
    listing = module.read(path, root=root, split=split)
    names = class_names(lists, source=source, root=root, num_classes=num_classes, classes=classes, split=split)
    number_of = {name: label for label, name in enumerate(names or ())}
    authors = ()  # what numbers of the source's own mean where the class file has another order
    if classes is not None and any(isinstance(entry.label, int) for entry in listing.entries):
        authors = module.classes(root, _find(lists, root, split)) or ()
    labels = []
    for entry in listing.entries:
        label = entry.label
        if isinstance(label, int) and 0 <= label < len(authors):
            label = authors[label]
        labels.append(_number(label, _where(path, entry), num_classes, number_of, classes))
        if complete and labels[-1] < 0:
            raise DataError(f"{_where(path, entry)}: a training list must give a label.")
    if not listing.entries and not listing.missing:
        raise DataError(f"{path} lists no videos.")
    _refuse_repeats(path, listing.entries)
    told = _names_in(exclude) if exclude else ()
    excluded = {entry for entry in listing.entries if told and place(entry, root) in told}
    absent = _absent(entry for entry in listing.entries if entry not in excluded)
    if missing == "error":
        _require_all(path, root, listing, absent)
    kept = [
        (entry, label)
        for entry, label in zip(listing.entries, labels, strict=True)
        if entry not in excluded and entry.path not in absent
    ]
    if not kept:
        raise DataError(
            f"{path}: none of its {len(listing.entries) + len(listing.missing)} videos is there"
            f"{' and not excluded' if excluded else ''} (data.root={root})."
        )
    if complete and names is None and max(labels) + 1 != num_classes:
        raise DataError(
            f"{path}: the largest label is {max(labels)}, but data.num_classes is {num_classes}: set "
            f"data.num_classes={max(labels) + 1}, or give data.classes if some classes have no "
            "video."
        )
    records = tuple(
        Record(number, entry.path, label, entry.line, entry.start, entry.end, entry.position, entry.feature, entry.name)
        for number, (entry, label) in enumerate(kept)
    )
    written = "".join(f"{entry.name}\0{label}\n" for entry, label in kept)
    digest = hashlib.sha256(written.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    gone = listing.missing + tuple(entry.name for entry in listing.entries if entry.path in absent)
    return Manifest(
        path, records, names, digest, gone, tuple(entry.name for entry in listing.entries if entry in excluded)
    )


def _source(name):
    if name not in SOURCES:
        raise DataError(f"data.source must be one of {', '.join(SOURCES)}, but is {name!r}.")
    return SOURCES[name]


def _several(names):
    return (names,) if isinstance(names, str) else tuple(names)


def _find(names, root, split, source=None):
    """The path of the first of the lists that exists; without one, DataError if a `source` is named."""
    paths = [os.path.join(root, name.replace("{split}", str(split))) for name in _several(names)]
    found = [path for path in paths if os.path.exists(path)]
    if source and not found and len(paths) > 1:
        raise DataError(
            f"There is no {' or '.join(paths)} (data.source={source}): set data.root to the folder of the "
            "data set, or data.train and data.val to its lists."
        )
    return (found or paths)[0]


def _names_in(path):
    """The lines of a file, in which names of files may hold any bytes."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return frozenset(file.read().split("\n")) - {""}
    except OSError as error:
        raise DataError(f"{path} (data.exclude) cannot be read: {error.strerror}.") from None


def _number(label, where, num_classes, number_of, classes):
    """The number of the class that a label means, -1 without one."""
    if label is None:
        return -1
    if label in number_of:
        return number_of[label]
    try:
        if number_of and classes is None and isinstance(label, str):
            raise ValueError  # a name that is a number to us need not be its place among the others
        number = int(label)
    except ValueError:
        kind = (
            "a number, and data.classes gives no names"
            if not number_of
            else "a name of data.classes"
            if classes is not None
            else f"one of the {len(number_of)} classes"
        )
        raise DataError(f"{where}: the label {label!r} is not {kind}.") from None
    if not 0 <= number < num_classes:
        raise DataError(
            f"{where}: label {number} is out of range for data.num_classes={num_classes} "
            f"(labels are 0 to {num_classes - 1})."
        )
    return number


def _where(path, entry):
    return f"{path} line {entry.line}" if entry.line else f"{path}: {entry.name}"


def _refuse_repeats(path, entries):
    first = {}
    for entry in entries:
        before = first.setdefault((entry.path, entry.start, entry.end, entry.position), entry)
        if before is not entry:
            again = f"{entry.name} is already on line {before.line}" if entry.line else "it is there twice"
            raise DataError(f"{_where(path, entry)}: {again}.")


def _absent(entries):
    """The paths that do not exist."""
    # One listing per folder: a look at each of a quarter of a million files takes minutes on a network disk.
    listings, absent = {}, set()
    for entry in entries:
        folder, name = os.path.split(entry.path.rstrip("/"))
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder or "."))
            except OSError:
                listings[folder] = set()
        if name not in listings[folder]:
            absent.add(entry.path)
    return absent


def _require_all(path, root, listing, absent):
    gone = [entry for entry in listing.entries if entry.path in absent]
    if gone:
        others = f", nor do {len(gone) - 1} others of this list" if len(gone) > 1 else ""
        raise DataError(f"{_where(path, gone[0])}: {gone[0].path} does not exist{others}.")
    if listing.missing:
        count = len(listing.entries) + len(listing.missing)
        raise DataError(
            f"{path}: {len(listing.missing)} of {count} videos are not below {root}, the first of them "
            f"{listing.missing[0]}; data.missing=leave_out goes on without them."
        )

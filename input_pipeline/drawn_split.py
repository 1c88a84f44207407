"""Draws a validation part from the videos of data that have none, and keeps groups of videos in one part.

The draw is a function of the names of the videos, their classes, the groups and a seed. It depends on neither the order
of the videos nor the machine, and a video that is added or removed moves few others.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

from input_pipeline.annotations import Manifest, Record, digest, file_path, relative_path
from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.labels import join_labels

_INTEGER = re.compile("[0-9]+")
_SHARE = 5  # one video of so many is drawn
_NO_LABEL = (-1,)
MIN_GROUPS = 5  # of every class, for a suggestion of data.group

# What file names show, from the most to the least specific: `v_Jump_g01_c02.avi`, `match1_003.mp4`, `clip (12).mp4`.
_GROUP_AND_CLIP = r"([^/]*_g[0-9]+)_c[0-9]+"
_PATTERNS = (
    _GROUP_AND_CLIP,
    r"([^/]*?[0-9]+)[ _-]+[^/0-9]*[0-9]+\.[^./]*$",
    r"([^/]*?)[ _-]*\(?[0-9]+\)?\.[^./]*$",
)
_WHOLE = r"(.*)"  # the video, of several parts
_ENDS_WITH_DATE = re.compile(r"(19|20)[0-9]{2}([-_. ]?)[01][0-9]\2[0-3][0-9]\.[^./]*$")


class Item(NamedTuple):
    """A video to assign to a part.

    Attributes:
        name: identifies the video.
        classes: its classes, one or several. Videos without a label are a class of their own.
        path: the path in the list, which data.group is matched with.
    """

    name: str
    classes: Collection[Hashable]
    path: str


def items(manifest: Manifest, root: str) -> list[Item]:
    """Returns the videos of a manifest."""
    return [
        Item(relative_path(record, root), record.class_numbers or _NO_LABEL, file_path(record, root))
        for record in manifest.records
    ]


def compile_group(group: str | None) -> re.Pattern | None:
    """Returns the compiled data.group.

    Raises:
        DataError: it is no regular expression.
    """
    try:
        return None if group is None else re.compile(group)
    except re.error as error:
        raise DataError(f"data.group={shown(group)} is not a regular expression: {error}.") from None


def group_of(item: Item, group: re.Pattern | None) -> Hashable:
    """Returns the group of a video: what the groups of data.group match in its path.

    If the expression has no groups, all that it matches counts. A video that does not match is a group of its own.
    """
    match = group.search(item.path) if group else None
    return item.name if match is None else (match.groups() or match[0],)


def draw(items: Sequence[Item], seed: int, group: str | None = None) -> list[bool]:
    """Returns which videos belong to the validation part.

    These are a fifth of each class, as near as the groups allow, and at least one video of each class. A class whose
    videos are all of one group, such as a class of a single video, has none. Every class keeps videos for training.

    Args:
        items: the videos.
        seed: the seed of the draw.
        group: data.group.

    Raises:
        DataError: `group` is no regular expression, it matches no path, or no class has videos of two groups.
    """
    pattern = compile_group(group)
    if pattern and items and not any(pattern.search(item.path) for item in items):
        raise DataError(
            f"data.group={shown(group)} matches none of the {len(items)} paths, such as {shown(items[0].path)}. "
            "Correct the expression, or leave out data.group."
        )
    members: dict[Hashable, list[int]] = collections.defaultdict(list)
    for index, item in enumerate(items):
        members[group_of(item, pattern)].append(index)
    total = collections.Counter(label for item in items for label in item.classes)
    target = {label: min(max(round(count / _SHARE), 1), count - 1) for label, count in total.items()}
    drawn: collections.Counter = collections.Counter()
    chosen: set[Hashable] = set()
    size = {key: collections.Counter(label for i in ids for label in items[i].classes) for key, ids in members.items()}
    order = sorted(members, key=lambda key: _rank(seed, key))

    def fits(key, limit):
        counts = size[key]
        return bool(counts) and all(drawn[label] + count <= limit[label] for label, count in counts.items())

    def take(key):
        chosen.add(key)
        drawn.update(size[key])

    for key in order:
        if fits(key, target):
            take(key)
    most = {label: count - 1 for label, count in total.items()}
    for label in sorted(total, key=str):  # classes of which every group is larger than a fifth
        if not drawn[label]:
            larger = [key for key in order if key not in chosen and size[key][label] and fits(key, most)]
            if larger:
                take(min(larger, key=lambda key: size[key].total()))
    if not chosen:
        raise DataError(
            "A validation part cannot be drawn: no class has two videos, or two groups of data.group. Add videos, or "
            "set data.val to a list for validation."
        )
    return [group_of(item, pattern) in chosen for item in items]


def suggested_group(items: Sequence[Item]) -> str | None:
    """Returns a regular expression for data.group that the file names suggest, or None.

    It makes fewer groups than there are videos, and leaves every class at least `MIN_GROUPS` groups. In most groups,
    the videos are numbered one after the other: a number that goes on through all of a data set, a date or a time shows
    no groups.
    """
    labels = {label for item in items for label in item.classes}
    for text in (_WHOLE, *_PATTERNS):
        pattern = re.compile(text)
        groups: dict[Hashable, set] = collections.defaultdict(set)
        for item in items:
            for label in item.classes:
                groups[label].add(group_of(item, pattern))
        count = len(set().union(*groups.values()))
        has_enough = labels and count < len(items) and all(len(groups[label]) >= MIN_GROUPS for label in labels)
        if has_enough and (text in (_WHOLE, _GROUP_AND_CLIP) or _is_numbered_in_groups(items, pattern)):
            return text
    return None


def _is_numbered_in_groups(items: Sequence[Item], pattern: re.Pattern) -> bool:
    """Returns whether at least half of the videos are in groups that are numbered from 0 or 1, with few gaps.

    The numbers of a group may go on from class to class, or start anew in the folder of each.
    """
    for is_by_folder in (False, True):
        numbers: dict[Hashable, list[int]] = collections.defaultdict(list)
        for item in items:
            match = pattern.search(item.path)
            if match and not _ENDS_WITH_DATE.search(item.path):
                folder = os.path.dirname(item.path) if is_by_folder else ""
                numbers[folder, match.groups()].append(int(_INTEGER.findall(os.path.splitext(match[0])[0])[-1]))
        runs = [of_group for of_group in numbers.values() if len(of_group) == len(set(of_group)) > 1]
        if 2 * sum(len(run) for run in runs if max(run) <= 2 * len(run)) >= len(items):
            return True
    return False


def _rank(seed: int, key: Hashable) -> bytes:
    return hashlib.sha256(f"{seed}\0{key!r}".encode("utf-8", "surrogateescape")).digest()


def divided(manifest: Manifest, is_val: Sequence[bool], root) -> tuple[Manifest, Manifest]:
    """Divides a manifest into one for training and one for validation.

    The records are named by their paths from `root`, as if lists of these paths had been read.

    Args:
        manifest: the videos of both.
        is_val: whether each of its records is for validation.
        root: data.root.
    """
    parts = []
    for part in (False, True):
        chosen = [record for record, drawn in zip(manifest.records, is_val, strict=True) if drawn == part]
        records = tuple(
            dataclasses.replace(record, id=number, name=relative_path(record, root))
            for number, record in enumerate(chosen)
        )
        parts.append(
            dataclasses.replace(
                manifest, records=records, digest=digest((record, _label(record)) for record in records)
            )
        )
    return parts[0], dataclasses.replace(parts[1], missing=(), excluded=())


def list_text(manifest: Manifest, root) -> str:
    """Returns the videos of a manifest as a csv file with the columns `path,label`, and `start,end` for parts."""
    has_parts = any(record.is_part for record in manifest.records)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", "label", "start", "end")[: 4 if has_parts else 2])
    for record in manifest.records:
        labels = [manifest.classes[label] if manifest.classes else str(label) for label in record.class_numbers]
        times = ("" if seconds is None else repr(seconds) for seconds in (record.start, record.end))
        writer.writerow((file_path(record, root), join_labels(labels), *(times if has_parts else ())))
    return table.getvalue()


def _label(record: Record) -> int | tuple[int, ...]:
    return record.label if record.labels is None else record.labels

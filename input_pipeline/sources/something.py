"""Something-Something v2 (Goyal et al., 2017) with the JSON files of its authors, under their old or new names.

The videos, `ID.webm` or folders of frames of that name, lie anywhere below `root`.
"""

import os
import re

from input_pipeline.errors import DataError
from input_pipeline.sources.files import find_videos, read_json
from input_pipeline.sources.listing import Entry, Listing


def _names(part):
    names = (f"something-something-v2-{part}.json", f"{part}.json")
    return names + tuple(f"labels/{name}" for name in names)


TRAIN, VAL = _names("train"), _names("validation")

_SIDES = {"left": "right", "right": "left"}


def read(path, *, root, split) -> Listing:
    """The videos of a list that lie below `root`; the others are missing.

    Raises:
      DataError: an item has no id, or two files are the same video.
    """
    del split
    items = read_json(path, list)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise DataError(f"{path}: item {number} has no id: {item!r}.")
    found = find_videos(root, {item["id"] for item in items})
    entries, missing = [], []
    for item in items:
        if item["id"] in found:
            template = item.get("template")  # the test list has none
            label = template and template.replace("[", "").replace("]", "")
            entries.append(Entry(item["id"], found[item["id"]], label, 0))
        else:
            missing.append(item["id"])
    return Listing(tuple(entries), tuple(missing))


def classes(root, train) -> tuple[str, ...]:
    """The templates without their brackets, by the numbers of the file of labels beside the list or below `root`.

    Raises:
      DataError: there is no such file, or its numbers are not 0, 1, 2 and so on.
    """
    beside = os.path.dirname(train)
    places = [os.path.join(folder, name) for folder in dict.fromkeys((beside, root)) for name in _names("labels")]
    path = next((place for place in places if os.path.exists(place)), places[0])
    numbers = read_json(path, dict)
    try:
        names = sorted(numbers, key=lambda name: int(numbers[name]))
    except (ValueError, TypeError):
        names = []
    if not names or [int(numbers[name]) for name in names] != list(range(len(names))):
        raise DataError(f"{path} does not number its labels 0, 1, 2 and so on.")
    return tuple(names)


def mirrored(classes) -> tuple[tuple[str, str], ...]:
    """The pairs of classes that a mirror turns into each other: their names differ in left and right alone."""
    pairs = []
    for name in classes:
        other = re.sub(r"\b(left|right)\b", lambda side: _SIDES[side[0]], name)
        if other != name and other in classes and (other, name) not in pairs:
            pairs.append((name, other))
    return tuple(pairs)

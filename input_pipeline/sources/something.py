"""Something-Something v2 (Goyal et al., 2017) with the JSON files of its authors, under their old or new names.

The videos are anywhere below `root`, as `ID.webm` or as folders of frames named ID.
"""

import os
import re
from types import NoneType

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import find_videos, read_json
from input_pipeline.sources.listing import Entry, Listing


def _file_names(stem):
    names = (f"something-something-v2-{stem}.json", f"{stem}.json")
    return names + tuple(f"labels/{name}" for name in names)


TRAIN, VAL, TEST = _file_names("train"), _file_names("validation"), _file_names("test")

# A word of its own, also in snake_case and CamelCase.
_SIDE = re.compile(r"((?<![A-Za-z])(left|right|LEFT|RIGHT)|(?<![A-Z])(Left|Right))(?![a-z])")
_OPPOSITE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_OPPOSITE |= {right: left for left, right in _OPPOSITE.items()}
# The sides in other languages. Both of a pair must occur, since a word such as `links` also means other things.
_OTHER_SIDES = (
    ("links", "rechts"),
    ("gauche", "droite"),
    ("izquierda", "derecha"),
    ("esquerda", "direita"),
    ("sinistra", "destra"),
    ("lewo", "prawo"),
    ("влево", "вправо"),
    ("左", "右"),
    ("왼쪽", "오른쪽"),
)


def read(path, *, root, split) -> Listing:
    """Returns the videos of a list that are below `root`. The others are missing.

    Raises:
        DataError: an item has no id, its template is no text, or two files are the same video.
    """
    del split
    items = read_json(path, list)
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise DataError(f"{path}: item {number} has no id: {shown(item)}.")
        if not isinstance(item.get("template"), (str, NoneType)):
            raise DataError(f"{path}: the template of item {number} is no text: {shown(item['template'])}.")
    found = find_videos(root, {item["id"] for item in items})
    entries, missing = [], []
    for item in items:
        if item["id"] in found:
            template = item.get("template")  # test lists have no template
            label = template and template.replace("[", "").replace("]", "")
            entries.append(Entry(item["id"], found[item["id"]], label, 0))
        else:
            missing.append(item["id"])
    return Listing(tuple(entries), tuple(missing))


def classes(root, train) -> tuple[str, ...]:
    """Returns the templates without their brackets, ordered by the numbers in the file of labels.

    The file is beside the list or below `root`.

    Raises:
        DataError: the file does not exist, or its numbers are not 0, 1, 2 and so on.
    """
    folders = dict.fromkeys((os.path.dirname(train), root))
    paths = [os.path.join(folder, name) for folder in folders for name in _file_names("labels")]
    path = next((path for path in paths if os.path.exists(path)), paths[0])
    numbers = read_json(path, dict)
    try:
        names = sorted(numbers, key=lambda name: int(numbers[name]))
    except (ValueError, TypeError, OverflowError):
        names = []
    if not names or [int(numbers[name]) for name in names] != list(range(len(names))):
        raise DataError(f"{path} does not number its labels 0, 1, 2 and so on.")
    return tuple(names)


def mirrored(classes) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of class names that differ only in left and right: a mirror turns one into the other."""
    pairs: list[tuple[str, str]] = []
    for name in classes:
        other = _SIDE.sub(lambda side: _OPPOSITE[side[0]], name)
        if other != name and other in classes and (other, name) not in pairs:
            pairs.append((name, other))
    return tuple(pairs)


def sided(classes) -> tuple[str, ...]:
    """Returns the class names that name a side or a sense of rotation, which a mirror changes.

    Sides are also found in some languages other than English, if the names of the classes name both.
    """
    lower = {name: name.lower() for name in classes}
    pairs = [pair for pair in _OTHER_SIDES if all(any(side in text for text in lower.values()) for side in pair)]
    words = ["clockwise", *(side for pair in pairs for side in pair)]
    return tuple(name for name, text in lower.items() if _SIDE.search(name) or any(word in text for word in words))

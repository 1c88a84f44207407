"""UCF101 (Soomro et al., 2012): `v_Class_g01_c01.avi` in class folders, and three splits into training and test.

`classInd.txt` and the lists of the splits lie in `root` or in one folder of it, ucfTrainTestlist as published; the
class folders lie in `root` or in one folder of it, UCF-101 as published.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.sources.files import find_folder, read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN = ("ucfTrainTestlist/trainlist0{split}.txt", "trainlist0{split}.txt")
VAL = ("ucfTrainTestlist/testlist0{split}.txt", "testlist0{split}.txt")


def read(path, *, root, split) -> Listing:
    """The videos of a list. Their folder is their class; the number after it, in training lists, must agree.

    Raises:
      DataError: a line is not `Class/video.avi [number]`, or its number is that of another class.
    """
    del split
    names = classes(root, path)
    number_of = {name: str(number) for number, name in enumerate(names, start=1)}
    folder = find_folder(root, lambda found: not number_of.keys().isdisjoint(found)) or root
    entries = []
    for line, text in read_lines(path):
        name, _, number = text.partition(" ")
        label = name.partition("/")[0]
        if label not in number_of:
            raise DataError(f"{path} line {line}: {text!r} does not start with a class of classInd.txt and a slash.")
        if number and number.strip() != number_of[label]:
            raise DataError(
                f"{path} line {line}: {label} is number {number_of[label]} in classInd.txt, not {number.strip()}."
            )
        entries.append(Entry(name, os.path.join(folder, name), label, line))
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...]:
    """The names of `classInd.txt`, which numbers them from 1. DataError: it is not there, or numbers otherwise."""
    folder = os.path.dirname(train)
    if not os.path.exists(os.path.join(folder, "classInd.txt")):
        folder = find_folder(root, lambda found: "classInd.txt" in found) or folder
    path = os.path.join(folder, "classInd.txt")
    names = []
    for line, text in read_lines(path):
        number, _, name = text.partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise DataError(f"{path} line {line}: expected number {len(names) + 1} and a class, and found {text!r}.")
        names.append(name.strip())
    return tuple(names)

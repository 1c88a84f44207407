"""UCF101 (Soomro et al., 2012): `v_Class_g01_c01.avi` in class folders, and three splits into training and test videos.

`classInd.txt` and the lists of the splits are in `root` or in one folder of `root`, which is named ucfTrainTestlist as
published. The class folders are in `root` or in one folder of `root`, which is named UCF-101 as published.
"""

import os

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.files import find_folder, read_lines
from input_pipeline.sources.listing import Entry, Listing

TRAIN = ("ucfTrainTestlist/trainlist0{split}.txt", "trainlist0{split}.txt")
VAL = ("ucfTrainTestlist/testlist0{split}.txt", "testlist0{split}.txt")


def read(path, *, root, split) -> Listing:
    """Returns the videos of a list. The folder of a video is its class; the number in training lists must agree.

    Raises:
        DataError: a line is not `Class/video.avi [number]`, or the number belongs to another class.
    """
    del split
    names = classes(root, path)
    number_of = {name: str(number) for number, name in enumerate(names, start=1)}
    folder = find_folder(root, lambda names: not number_of.keys().isdisjoint(names)) or root
    entries = []
    for line, text in read_lines(path):
        name, _, number = text.partition(" ")
        label = name.partition("/")[0]
        if label not in number_of:
            raise DataError(
                f"{path} line {line}: {shown(text)} does not start with a class of classInd.txt and a slash."
            )
        if number and number.strip() != number_of[label]:
            raise DataError(
                f"{path} line {line}: {label} is number {number_of[label]} in classInd.txt, not {number.strip()}."
            )
        entries.append(Entry(name, os.path.join(folder, name), label, line))
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...]:
    """Returns the names in `classInd.txt`, which numbers them from 1.

    Raises:
        DataError: the file does not exist, or does not number the classes 1, 2, 3 and so on.
    """
    folder = os.path.dirname(train)
    if not os.path.exists(os.path.join(folder, "classInd.txt")):
        folder = find_folder(root, lambda names: "classInd.txt" in names) or folder
    path = os.path.join(folder, "classInd.txt")
    names: list[str] = []
    for line, text in read_lines(path):
        number, _, name = text.partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise DataError(
                f"{path} line {line}: expected number {len(names) + 1} and a class, and found {shown(text)}."
            )
        names.append(name.strip())
    return tuple(names)

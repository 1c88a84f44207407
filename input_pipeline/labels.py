"""Labels: from the text of a list to class numbers, with one label a clip or several."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Sequence

from input_pipeline.errors import DataError
from input_pipeline.fields import shown
from input_pipeline.sources.listing import Entry
from input_pipeline.text import folded, is_unicode, natural_key

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
ONE, MANY = "one", "many"  # the values of data.labels
_SEPARATOR = ";"
_MAX_NAMED = 10  # classes in a message
# The sources whose lists are written by users. All others have one label a video by their layout.
_SOURCES_OF_MANY = ("auto", "csv", "lists", "frames", "shards")


def require_many(source: str, path: str) -> None:
    """Raises DataError if the list `path` of a source cannot give several labels a clip."""
    if source == "auto" and os.path.isdir(path):
        raise DataError(
            f"data.labels='many' reads lists with several labels a video, but {path} holds class folders, which give "
            "one label a video. Write train.csv with the columns path,label and join labels by semicolons; or set "
            "data.labels=one."
        )
    if source not in _SOURCES_OF_MANY:
        raise DataError(
            f"data.labels='many' reads lists with several labels a video, but data.source={source!r} gives one label a "
            "video. Set data.source=csv and write the labels into a csv file, joined by semicolons; or set "
            "data.labels=one."
        )


def refuse_separator(names: Iterable[str], path) -> None:
    """Raises DataError if one of the class names in the class file `path` holds the separator of labels."""
    for name in names:
        if _SEPARATOR in name:
            raise DataError(
                f"{path}: the class name {shown(name)} holds a semicolon, which separates labels with "
                "data.labels=many. Give the class another name."
            )


def split_labels(text: str) -> list[str]:
    """Returns the labels of a field of a list, which are joined by semicolons. An empty field has none."""
    return [label.strip() for label in text.split(_SEPARATOR)] if text.strip() else []


def found_names(path, entries: Iterable[Entry], labels: str) -> tuple[str, ...] | None:
    """Returns the names of all labels of a list in natural order, or None if all of them are whole numbers.

    Args:
        path: the list, for error messages.
        entries: its videos. Labels that are numbers of a source already have no names.
        labels: data.labels.

    Raises:
        DataError: a label is a decimal number, some labels are names and others are numbers, or the labels of a video
            are not joined by single semicolons. With one label a video, a label holds a semicolon.
    """
    first: dict[str, Entry] = {}
    for entry in entries:
        if isinstance(entry.label, str):
            for name in _separate(path, entry) if labels == MANY else (entry.label,):
                first.setdefault(str(name), entry)
    first.pop("", None)  # a video without a label
    for name, entry in first.items():
        if not is_unicode(name):
            raise DataError(f"{where(path, entry)}: the label {shown(name)} is not UTF-8 text. Save the list as UTF-8.")
        if _DECIMAL.fullmatch(name):
            raise DataError(
                f"{where(path, entry)}: the label {shown(name)} is a decimal number. Labels are class names, or whole "
                "numbers from 0."
            )
        if _SEPARATOR in name:
            raise DataError(
                f"{where(path, entry)}: the label {shown(name)} holds a semicolon. Set data.labels=many if the video "
                "has several labels; or else list the class names in a file and set data.classes to it."
            )
    numbers = [name for name in first if _INTEGER.fullmatch(name)]
    if len(numbers) == len(first):
        return None
    if numbers:
        name = next(name for name in first if name not in numbers)
        raise DataError(
            f"{where(path, first[name])}: the label {shown(name)} is a name, and {shown(numbers[0])} on line "
            f"{first[numbers[0]].line} is a number. Give only names or only numbers, or list the names in a file and "
            "set data.classes to it."
        )
    return tuple(sorted(first, key=natural_key))


def _separate(path, entry: Entry) -> Sequence[str | int]:
    """Returns the labels of an entry that has several."""
    if not isinstance(entry.label, str):
        return entry.label if isinstance(entry.label, tuple) else (entry.label,)
    labels = split_labels(entry.label)
    if "" in labels:
        raise DataError(
            f"{where(path, entry)}: a semicolon in {shown(entry.label)} has no label on one side. Write LABEL;LABEL."
        )
    return labels


@dataclasses.dataclass(frozen=True)
class LabelNumbers:
    """Converts the labels of a list to class numbers.

    Attributes:
        names: class names in the order of the numbers, or ().
        source_names: class names in the order of the number labels of the source. Empty unless a class file, whose
            order may differ, is given.
        num_classes: numbers are 0 to num_classes - 1.
        has_class_file: whether `names` come from data.classes, or from a run. Then labels may be numbers, too.
        of_run: whether `names` are those of a run that is evaluated.
    """

    names: Sequence[str]
    source_names: Sequence[str]
    num_classes: int
    has_class_file: bool
    of_run: bool = False

    @functools.cached_property
    def _number_of(self):
        return {name: number for number, name in enumerate(self.names)}

    def class_number(self, entry: Entry, path, required: bool) -> int:
        """Returns the class number of an entry of the list `path`, or -1 if it has no label and `required` is False.

        Raises:
            DataError: the label is not one of the classes, or there are several.
        """
        if entry.label is None:
            return self._without_label(entry, path, required)
        if isinstance(entry.label, tuple):
            raise DataError(f"{where(path, entry)}: the clip has several labels. Set data.labels=many.")
        return self._number(entry.label, where(path, entry), splits=False)

    def class_numbers(self, entry: Entry, path, required: bool) -> tuple[int, ...] | int:
        """Returns the class numbers of an entry with several labels, in ascending order.

        An entry without any label has -1 if `required` is False. That differs from an empty text, which has ().

        Raises:
            DataError: a label is not one of the classes, or is given twice.
        """
        if entry.label is None:
            return self._without_label(entry, path, required)
        labels = _separate(path, entry)
        numbers = [self._number(label, where(path, entry), splits=True) for label in labels]
        for index, number in enumerate(numbers):
            if number in numbers[:index]:
                raise DataError(f"{where(path, entry)}: the label {shown(labels[index])} is given twice.")
        return tuple(sorted(numbers))

    def _without_label(self, entry: Entry, path, required: bool) -> int:
        if required:
            raise DataError(f"{where(path, entry)}: a training list must give a label.")
        return -1

    def _number(self, label: str | int, place: str, splits: bool) -> int:
        if isinstance(label, int) and 0 <= label < len(self.source_names):
            label = self.source_names[label]
        if label in self._number_of:
            return self._number_of[label]
        if label == "":
            raise DataError(f"{place}: the video has no label. Write its class into the column after the path.")
        try:
            if self.names and not self.has_class_file and isinstance(label, str):
                raise ValueError  # a class name made of digits is not the position of that class in the order
            number = int(label)
        except ValueError:
            advice = "" if splits or _SEPARATOR not in str(label) else " Several labels need data.labels=many."
            raise DataError(f"{place}: the label {shown(label)} is not {self._expected(str(label))}.{advice}") from None
        if not 0 <= number < self.num_classes:
            raise DataError(
                f"{place}: label {number} is out of range for data.num_classes={self.num_classes} "
                f"(labels are 0 to {self.num_classes - 1})."
            )
        return number

    def _expected(self, label: str) -> str:
        if not self.names:
            return "a number, and data.classes gives no names"
        if alike := next((name for name in self.names if folded(name) == folded(label)), None):
            return f"the class {shown(alike)}: upper and lower case, and the way in which accents are stored, differ"
        if self.of_run:
            return f"one of the classes of the run, {', '.join(map(shown, self.names[:_MAX_NAMED]))}"
        return "a name of data.classes" if self.has_class_file else f"one of the {len(self.names)} classes"


def where(path, entry: Entry) -> str:
    """Returns the place of an entry of the list `path`, for error messages."""
    return f"{path} line {entry.line}" if entry.line else f"{path}: {entry.name}"


def label_text(label: int | tuple[int, ...]) -> str:
    """Returns the class numbers of a video as text."""
    return join_labels(map(str, label)) if isinstance(label, tuple) else str(label)


def join_labels(labels: Iterable[str]) -> str:
    """Returns the field of a list for the labels of a video, as `split_labels` reads it."""
    return _SEPARATOR.join(labels)


def swapped_labels(pairs: Iterable[Sequence[str | int]], class_names: Sequence[str]) -> dict[int, int]:
    """Returns label -> label of the mirrored clip, for pairs of classes that a mirror turns into each other.

    Args:
        pairs: two class names or class numbers each.
        class_names: the names by class number.

    Raises:
        DataError: a class does not exist, or is named twice.
    """
    number_of = {name: label for label, name in enumerate(class_names)}
    swapped: dict[int, int] = {}
    for pair in pairs:
        first, second = (number_of.get(entry, entry) for entry in pair)  # type: ignore[arg-type, call-overload]
        for label, other in ((first, second), (second, first)):
            if not isinstance(label, int) or not 0 <= label < len(class_names):
                raise DataError(
                    f"data.flip_swaps: {shown(label)} is neither a class name nor a label below "
                    f"data.num_classes={len(class_names)}."
                )
            if label in swapped or first == second:
                raise DataError(
                    f"data.flip_swaps and data.flip_sides swap the class {shown(class_names[label])} twice or "
                    "with itself. Name each class once."
                )
            swapped[label] = other
    return swapped

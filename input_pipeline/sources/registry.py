"""The registry of sources: the kinds of data sets that the pipeline can read."""

from typing import Protocol

from input_pipeline.sources.listing import Listing


class Source(Protocol):
    """The interface of a source. Modules such as `csv` implement it with two constants and two functions.

    A source of data sets with a third part also has `TEST`, the file names of its list, as `TRAIN`.
    """

    @property
    def TRAIN(self) -> tuple[str, ...]:
        """File names of the training list as the authors of the data set publish them, relative to the root.

        They are tried in order. '{split}' stands for the number of the split.
        """
        ...

    @property
    def VAL(self) -> tuple[str, ...]:
        """File names of the validation list, as `TRAIN`."""
        ...

    def read(self, path, *, root, split) -> Listing:
        """Returns the videos of a list.

        Args:
            path: path of the list, `root` included.
            root: folder that holds the videos.
            split: number of the official split, for data sets with several.

        Raises:
            DataError: the list has a mistake. The message names the file and line of the first one.
        """
        ...

    def classes(self, root, train) -> tuple[str, ...] | None:
        """Returns the class names by label, in the order of the authors of the data set.

        None means that the names come from data.classes, or that the labels are numbers.

        Args:
            root: folder that holds the videos.
            train: path of the training list, `root` included.

        Raises:
            DataError: the file that holds the names has a mistake.
        """
        ...


SOURCES: dict[str, Source] = {}


def register(name: str, source: Source) -> None:
    """Adds a source under its value of the field data.source.

    Raises:
        ValueError: the name is registered already.
    """
    if name in SOURCES:
        raise ValueError(f"The source {name!r} is registered twice.")
    SOURCES[name] = source

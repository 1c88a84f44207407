"""The parts of a data set: the lists for training, validation and tests, their videos and their classes."""

import dataclasses
import functools
import os

from input_pipeline import motion_clips
from input_pipeline.annotations import Manifest, class_names, read_manifest
from input_pipeline.drawn_split import divided, draw, items
from input_pipeline.errors import DataError
from input_pipeline.layouts import Layout, find_layout
from input_pipeline.sources import SOURCES

PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a data set. The fields are those of `Pipeline`."""

    source: str
    root: str
    name: str | None
    train: str | None
    val: str | None
    test: str | None
    val_seed: int
    group: str | None
    split: int
    missing: str
    exclude: str | None
    num_classes: int
    classes: str | tuple[str, ...] | None
    labels: str

    def manifest(self, part: str) -> Manifest:
        """Returns the manifest of a part, 'train', 'val' or 'test'. It is read and checked on first use.

        Raises:
            DataError: the list has a mistake, or there is no such part.
        """
        if part == "test":
            return self._test
        if self.is_drawn:
            return self._drawn[PARTS.index(part)]
        return self._val if part == "val" else self.listed

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that are checked and prepared. The third one is if data.test or the layout of own data gives it."""
        has_test = self.test is not None or self.layout is not None and self.layout.test is not None
        return PARTS if has_test else PARTS[:2]

    @property
    def is_drawn(self) -> bool:
        """Whether the validation part is drawn from the training list, because the data have none."""
        return not self._lists["val"]

    @functools.cached_property
    def layout(self) -> Layout | None:
        """The layout of own data, or None if the source is not 'auto'."""
        return find_layout(self.root, self.train, self.val, self.test) if self.source == "auto" else None

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label, from the class file or the source; the numbers themselves if there are no names."""
        names = class_names(
            (*self._lists["train"], *self._lists["val"]),
            source=self._list_source,
            root=self._prepared_root,
            num_classes=self.num_classes,
            classes=self.classes,
            split=self.split,
            labels=self.labels,
        )
        return names or tuple(map(str, range(self.num_classes)))

    @functools.cached_property
    def listed(self) -> Manifest:
        """The videos of the training list, those of the validation part included if it is drawn from the list."""
        return self._read("train", complete=True)

    @functools.cached_property
    def _val(self) -> Manifest:
        return self._read("val")

    @functools.cached_property
    def _test(self) -> Manifest:
        if self.test is None and not any(os.path.exists(os.path.join(self.root, name)) for name in self._lists["test"]):
            add = "Add test.csv or a folder test with class folders, or set" if self.source == "auto" else "Set"
            raise DataError(
                f"data.root={self.root} has no test part (data.source={self.source}). {add} data.test to its list."
            )
        return self._read("test")

    @functools.cached_property
    def _drawn(self) -> tuple[Manifest, Manifest]:
        """The training and the validation part of a list that holds both."""
        return divided(self.listed, draw(items(self.listed, self.root), self.val_seed, self.group), self.root)

    @property
    def _list_source(self) -> str:
        return "csv" if self.source == "motion_clips" else self.source

    @functools.cached_property
    def _lists(self) -> dict[str, tuple[str, ...]]:
        """The file names of the list of each part; the first that exists is read. () if there is no such part."""
        if self.layout is not None:
            return {part: (getattr(self.layout, part),) if getattr(self.layout, part) else () for part in PARTS}
        source = SOURCES[self._list_source]
        usual = {"train": source.TRAIN, "val": source.VAL, "test": getattr(source, "TEST", ())}
        given = {part: getattr(self, part) for part in PARTS}
        return {
            part: tuple(
                os.path.join(self.name or "", name) for name in ((given[part],) if given[part] else usual[part])
            )
            for part in PARTS
        }

    @functools.cached_property
    def _prepared_root(self) -> str:
        if self.source == "motion_clips":
            motion_clips.ensure(self.root, report=print)
        return self.root

    def _read(self, part: str, complete: bool = False) -> Manifest:
        return read_manifest(
            self._lists[part],
            source=self._list_source,
            root=self._prepared_root,
            num_classes=self.num_classes,
            classes=self.classes,
            train=self._lists["train"],
            split=self.split,
            complete=complete,
            missing=self.missing,
            exclude=self.exclude,
            labels=self.labels,
        )

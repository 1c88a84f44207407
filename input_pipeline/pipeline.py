"""Batches of clips: the `data` section of a config, and the two iterators made from it."""

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Sequence

import grain

from input_pipeline.annotations import Manifest, Record, class_names, read_manifest
from input_pipeline.augment import TrainAugment, crop_places
from input_pipeline.batches import PADDING, ProcessShare, flatten, local_size, train_rows, val_row
from input_pipeline.errors import DataError
from input_pipeline.prefetch import Batches, max_batch_bytes
from input_pipeline.sampling import Dense, Uniform
from input_pipeline.sources import SOURCES
from input_pipeline.sources.something import mirrored
from input_pipeline.videos import open_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The data of a run. The fields are the config section `data`.

    Attributes:
      source: kind of the lists, a key of `sources.SOURCES`, or 'motion_clips' to render the embedded data set into
        `root` where it is missing.
      root: folder that the lists, the class file and the paths in them are relative to.
      name: of the data set below `root`, with a configuration after a slash; for the source 'tfds' alone.
      train, val: lists, see `annotations.read_manifest`; None takes those that the source's authors name.
      split: number of the official split, for data sets with several.
      missing: 'error', or 'leave_out' for videos of a list that are not there.
      exclude: file of videos to leave out, as `check` writes it, or None.
      num_classes: labels lie in [0, num_classes).
      classes: class file, one name a line, or None for the classes of the source.
      frames: frames of a clip.
      sampling: 'uniform', over the whole video, or 'dense', one stretch of it (see `sampling`).
      stride, fps: dense sampling takes every stride-th frame, counted at `fps` frames per second, or at the
        file's own rate where that is None.
      test_starts: where dense test clips start, 'spread' or 'from_first' (see `sampling.Dense`).
      frame_rate: frames per second of videos that are folders of frames; files know their own.
      size: pixels, side of the square clip.
      short_side: (low, high) pixels, the scale jitter of training.
      test_short_side: pixels, the scale in testing; None is `size`.
      repeats: clips that a training batch holds of each of its videos: the same frames, augmented anew. A pass over
        the videos is as many times longer, counted in clips.
      crop, area, aspect, flip, brightness, saturation, gamma, hue, randaugment, magnitude, magnitude_std, erasing:
        augmentation in training, see `augment.TrainAugment`.
      flip_swaps: pairs of class names, or of label numbers, that a mirror turns into each other.
      flip_sides: whether a mirror also turns classes into each other whose names differ in left and right alone.
      workers: decoding processes; 0 decodes in this one.
      prefetch: batches that each worker has ready (grain keeps as many again on their way to this process).
      limit_seconds: time that one video may take to decode.
      max_bad_fraction: share of undecodable videos, from 0 to 1, at which a run should give up.

    Raises:
      DataError: a field is out of range, or, when first read, a manifest has a mistake.
    """

    source: str = "csv"
    root: str = "."
    name: str | None = None
    train: str | None = None
    val: str | None = None
    split: int = 1
    missing: str = "error"
    exclude: str | None = None
    num_classes: int
    classes: str | None = None
    frames: int
    sampling: str = "uniform"
    stride: int = 1
    fps: float | None = None
    test_starts: str = "spread"
    frame_rate: float = 30.0
    size: int
    short_side: tuple[int, int] = (256, 320)
    test_short_side: int | None = None
    repeats: int = 1
    crop: str = "jitter"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 1.3333)
    flip: float = 0.5
    flip_swaps: tuple[tuple[str | int, str | int], ...] = ()
    flip_sides: bool = False
    brightness: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0
    hue: float = 0.0
    randaugment: int = 0
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erasing: float = 0.0
    workers: int = 2
    prefetch: int = 2
    limit_seconds: float = 60.0
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        for field, choices in (
            ("source", (*SOURCES, "motion_clips")),
            ("sampling", ("uniform", "dense")),
            ("missing", ("error", "leave_out")),
        ):
            self._require(field, getattr(self, field) in choices, " or ".join(map(repr, choices)))
        self._require(
            "name",
            bool(self.name) == (self.source == "tfds"),
            "a data set of TensorFlow Datasets for data.source=tfds, and None for other sources",
        )
        for field, least in (
            ("num_classes", 1),
            ("size", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("split", 1),
            ("repeats", 1),
        ):
            self._require(field, _is_whole(getattr(self, field), least), f"a whole number of at least {least}")
        for field in ("flip", "brightness", "saturation", "gamma", "hue", "max_bad_fraction"):
            value = getattr(self, field)
            self._require(field, isinstance(value, numbers.Real) and 0 <= value <= 1, "from 0 to 1")
        bounds = self.short_side
        self._require(
            "short_side",
            _is_sequence(bounds, 2) and all(_is_whole(b, self.size) for b in bounds) and bounds[0] <= bounds[1],
            f"two ascending whole numbers of at least data.size={self.size} pixels",
        )
        test_side, swaps = self.test_short_side, self.flip_swaps
        self._require(
            "test_short_side",
            test_side is None or _is_whole(test_side, self.size),
            f"None or a whole number of at least data.size={self.size} pixels",
        )
        self._require(
            "flip_swaps",
            _is_sequence(swaps) and all(_is_sequence(pair, 2) for pair in swaps),
            "pairs of class names or of label numbers",
        )
        for field, unit in (("frame_rate", "frames per second"), ("limit_seconds", "seconds")):
            value = getattr(self, field)
            self._require(field, isinstance(value, numbers.Real) and 0 < value < math.inf, f"{unit} above 0")
        self.sampler, self._augment({})  # check their fields

    def _require(self, field, condition, expected):
        if not condition:
            raise DataError(f"data.{field} must be {expected}, but is {getattr(self, field)!r}.")

    @functools.cached_property
    def train_manifest(self) -> Manifest:
        """The training split, read and checked on first use; its labels must use all classes."""
        return self._manifest(self._lists[0], complete=True)

    @functools.cached_property
    def val_manifest(self) -> Manifest:
        """The validation or test split, read and checked on first use."""
        return self._manifest(self._lists[1], complete=False)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names by label: those of the class file or of the source, or the numbers themselves."""
        names = class_names(
            (*self._lists[0], *self._lists[1]),
            source=self._kind,
            root=self._prepared_root,
            num_classes=self.num_classes,
            classes=self.classes,
            split=self.split,
        )
        return names or tuple(map(str, range(self.num_classes)))

    @functools.cached_property
    def sampler(self) -> Uniform | Dense:
        """What chooses the frames of a clip."""
        if self.sampling == "uniform":
            return Uniform(self.frames)
        return Dense(self.frames, self.stride, self.fps, self.test_starts)

    @functools.cached_property
    def flip_map(self) -> dict[int, int]:
        """Label -> label of its mirror image, for the labels of `flip_swaps` and `flip_sides` only."""
        number_of = {name: label for label, name in enumerate(self.class_names)}
        swapped = {}
        for pair in (*self.flip_swaps, *(mirrored(self.class_names) if self.flip_sides else ())):
            first, second = (number_of.get(entry, entry) for entry in pair)
            for label, other in ((first, second), (second, first)):
                if not _is_whole(label, 0) or label >= self.num_classes:
                    raise DataError(
                        f"data.flip_swaps: {label!r} is neither a class name nor a label below "
                        f"data.num_classes={self.num_classes}."
                    )
                if label in swapped or first == second:
                    raise DataError(f"data.flip_swaps: {self.class_names[label]!r} appears twice.")
                swapped[label] = other
        return swapped

    def train_batches(self, *, batch_size, seed, start=0, process_index=0, process_count=1) -> Batches:
        """Shuffled, augmented training batches without end.

        Global batch k is a function of `seed` and k alone, whatever the workers, the number of processes and
        `start`: the order and all draws depend on the position in the whole sequence. Video v of process p is
        video `p * n + v` of the global batch, n videos a process; its `repeats` rows follow each other. Epochs follow
        one another within a batch.

        Args:
          batch_size: rows of the global batch; a process gets `batch_size / process_count` of them.
          seed: of the order, of the sampled frames and of the augmentation.
          start: number of batches that are used already.
          process_index, process_count: of the processes of a distributed run, this one and how many.

        Returns:
          Iterator of dictionaries: `video` uint8 (b, t, size, size, 3); `index` int32 (b, t), the place of each
          frame in its video; `label` int32 (b,); `mask` float32
          (b,), 0 for a row without data; `id` int32 (b,), the row in the manifest; `decoded` int32 (b,), the frames
          that were decoded for it; `error` bytes (b,), empty
          or why the video could not be decoded. Such a row has a black clip and mask 0: another video in its
          place would change the distribution of the classes unseen.

        Raises:
          DataError: the manifest has a mistake, or the processes do not share the batch's videos evenly.
        """
        if batch_size % self.repeats:
            raise DataError(f"A batch of {batch_size} clips does not hold data.repeats={self.repeats} of each video.")
        videos = batch_size // self.repeats
        load = functools.partial(
            train_rows,
            sampler=self.sampler,
            augment=self._augment(self.flip_map),
            repeats=self.repeats,
            open_video=self._open,
        )
        # Shared out only after random_map: before, every process would draw the same numbers for its rows.
        # Batched before the workers divide the work: after it, the order would depend on their number.
        dataset = (
            grain.MapDataset.source(self.train_manifest.records)
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(load)[start * videos :]
        )
        local = local_size(videos, process_count)
        dataset = ProcessShare(dataset, local, process_index, process_count).batch(local).map(flatten)
        return Batches(dataset, workers=self.workers, prefetch=self.prefetch)

    def val_batches(
        self,
        *,
        batch_size,
        clips,
        crops,
        frames=None,
        process_index=0,
        process_count=1,
        records: Sequence[Record] | None = None,
    ) -> Batches:
        """Every video once, in order, in equally many full batches for every process.

        Args:
          batch_size, process_index, process_count: as for `train_batches`; rows are videos.
          clips: temporal views, see `sampling`.
          crops: spatial views, 1 or 3, see `augment.test_crops`.
          frames: frames of a view, spread over the whole video; None takes views as in training.
          records: the videos, instead of those of the validation manifest.

        Returns:
          Iterator of dictionaries as from `train_batches`, with `video` uint8
          (b, clips * crops, t, size, size, 3) and `index` (b, clips * crops, t), the crops of a clip next to each
          other. Rows that fill up the
          last batch have id -1, mask 0, label 0 and no error.

        Raises:
          DataError: the manifest has a mistake, `clips` or `crops` is out of range, or the processes do not
            share the batch evenly.
        """
        local = local_size(batch_size, process_count)
        if not _is_whole(clips, 1):
            raise DataError(f"eval.clips must be a whole number of at least 1, but is {clips!r}.")
        crop_places(crops)  # refuses other counts here rather than in a worker
        records = self.val_manifest.records if records is None else tuple(records)
        if any(record.label < 0 for record in records):
            raise DataError(f"{self.val_manifest.path} gives no labels, without which there is nothing to evaluate.")
        count = math.ceil(len(records) / batch_size)
        padded = records + (PADDING,) * (count * batch_size - len(records))
        sampler = self.sampler if frames is None else Uniform(frames)
        load = functools.partial(
            val_row,
            sampler=sampler,
            clips=clips,
            crops=crops,
            size=self.size,
            short_side=self.test_short_side,
            open_video=self._open,
        )
        dataset = ProcessShare(grain.MapDataset.source(padded).map(load), local, process_index, process_count)
        dataset = dataset.batch(local)
        return Batches(dataset, workers=min(self.workers, count), prefetch=self.prefetch)

    @property
    def max_batch_bytes(self) -> float:
        """Bytes that a batch may have, so that what workers keep ready takes half of the free shared memory at most."""
        return max_batch_bytes(self.workers, self.prefetch)

    def _augment(self, flip_swaps):
        return TrainAugment(
            size=self.size,
            short_side=tuple(self.short_side),
            crop=self.crop,
            area=tuple(self.area),
            aspect=tuple(self.aspect),
            flip=self.flip,
            flip_swaps=flip_swaps,
            brightness=self.brightness,
            saturation=self.saturation,
            gamma=self.gamma,
            hue=self.hue,
            randaugment=self.randaugment,
            magnitude=self.magnitude,
            magnitude_std=self.magnitude_std,
            erasing=self.erasing,
        )

    @property
    def _open(self):
        return functools.partial(open_video, frame_rate=self.frame_rate, limit_seconds=self.limit_seconds)

    @property
    def _kind(self):
        return "csv" if self.source == "motion_clips" else self.source

    @property
    def _lists(self):
        """The names of the training list and of the validation list, each to be tried in order."""
        named = SOURCES[self._kind]
        lists = (self.train,) if self.train else named.TRAIN, (self.val,) if self.val else named.VAL
        if self.name is None:
            return lists
        return tuple(tuple(os.path.join(self.name, part) for part in parts) for parts in lists)

    @functools.cached_property
    def _prepared_root(self):
        if self.source == "motion_clips":
            from input_pipeline import motion_clips

            motion_clips.ensure(self.root, report=print)
        return self.root

    def _manifest(self, path, complete):
        return read_manifest(
            path,
            source=self._kind,
            root=self._prepared_root,
            num_classes=self.num_classes,
            classes=self.classes,
            train=self._lists[0],
            split=self.split,
            complete=complete,
            missing=self.missing,
            exclude=self.exclude,
        )


def _is_whole(value, least):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def _is_sequence(value, length=None):
    return isinstance(value, (tuple, list)) and length in (None, len(value))

"""The data of a run: the `data` section of a config, and its training and validation batches."""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence

import grain

from input_pipeline.annotations import Manifest, Record
from input_pipeline.augment import TrainAugment, crop_positions
from input_pipeline.balance import training_order
from input_pipeline.batches import (
    PADDING,
    ProcessBatches,
    load_train_rows,
    load_val_row,
    train_batch,
    val_batch,
    videos_per_process,
    with_generator,
)
from input_pipeline.drawn_split import compile_group
from input_pipeline.errors import DataError
from input_pipeline.fields import annotations, mistakes, shown
from input_pipeline.labels import MANY, ONE, swapped_labels
from input_pipeline.parts import Parts
from input_pipeline.paths import local_path
from input_pipeline.prefetch import Batches, max_batch_bytes, require_memory
from input_pipeline.samplers import long_sampler, make_sampler
from input_pipeline.sampling import Sampler, check_fps, check_test_starts
from input_pipeline.sizes import MAX_PIXELS, MAX_SIZE, default_short_side
from input_pipeline.sources import SOURCES
from input_pipeline.sources.something import mirrored
from input_pipeline.videos import open_video

_MAX_SIDE = 65_536  # pixels
_MAX_VIDEOS = 2**52  # of a run; Grain computes the number of batches of the whole sequence as a float
_WHOLE_NUMBERS = (  # (field, least, most)
    ("num_classes", 1, 10_000_000),
    ("frames", 1, MAX_PIXELS),
    ("size", 1, MAX_SIZE),
    ("workers", 0, 1024),
    ("prefetch", 1, 1024),
    ("split", 1, 1024),
    ("val_seed", 0, 2**32 - 1),
    ("repeats", 1, 1024),
    ("stride", 1, 1_000_000),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The data of a run. The fields are those of the config section `data`.

    Attributes:
        source: kind of the lists, a key of `sources.SOURCES`. 'auto' finds the layout of `root`, see `layouts`.
            'motion_clips' renders the demo data set into `root` if it is not there.
        root: folder to which the lists, the class file and the paths in the lists are relative. In all paths, `~` is
            the home folder.
        name: `NAME` or `NAME/CONFIG` of a data set that TensorFlow Datasets keeps below `root`. Only for 'tfds'.
        train, val, test: lists, see `annotations.read_manifest`. None: the usual file names of the source, such as
            train.csv. With 'auto', a validation part is drawn from the training list if there is none.
        val_seed: seed of the draw, see `drawn_split`. Configs set it to their seed.
        group: regular expression. Videos in whose paths its groups match the same text stay in one part of the draw.
        split: number of the official split, for data sets with several.
        missing: 'error', or 'leave_out' to leave out listed videos that do not exist.
        exclude: file of videos to leave out, as `check` writes it, or None.
        labels: 'one' label a clip, or 'many': any number of labels, joined by semicolons in a list.
        balance: 0 draws every training clip once in a pass. Above 0, the clips of a class are drawn in proportion to
            its number of clips to the power of minus this number: with 1, all classes are drawn equally often. With
            several labels, the rarest label of a clip counts. See `balance.training_order`.
        num_classes: labels are 0 to num_classes - 1.
        classes: class file with one name per line, or None for the classes of the source. A tuple holds the names
            themselves, to which labels that are names must belong.
        frames: frames per clip.
        sampling: 'uniform', over the whole video, 'dense', one contiguous segment (see `sampling`), or the rule of
            published code (see `samplers` and `frame_rules`).
        stride, fps: clips of one segment take every stride-th frame. 'dense' and 'slowfast' count at `fps` frames per
            second, or, if `fps` is None, at the frame rate of the file.
        test_starts: where test clips of 'dense' and 'slowfast' start, 'spread' or 'from_first'.
        frame_rate: frames per second of videos that are folders of frames. Video files store their own rate.
        size: pixels, side of the square clip.
        short_side: (low, high) pixels. In training, a video is resized so that its shorter side is a random number
            between them. None: 8/7 and 10/7 of `size`, which is 256 to 320 for 224.
        test_short_side: pixels, the shorter side in testing. None: `size`.
        resize: 'bilinear' or 'bicubic', see `resize.resize_box`.
        repeats: clips of each video in a training batch: the same frames, augmented differently (repeated
            augmentation). An epoch has `repeats` times as many clips.
        crop, area, aspect, flip, brightness, saturation, gamma, hue, colour_ranges, colour_jitter, grey, stretch,
        randaugment, magnitude, magnitude_std, erasing: augmentation in training, see `augment.TrainAugment`.
        flip_swaps: pairs of class names or label numbers that a mirror turns into each other.
        flip_sides: also swap classes whose names differ only in left and right.
        workers: decoding processes. 0: decode in this process.
        prefetch: batches that each worker keeps ready, besides the one that it makes and the one that it sends.
        limit_seconds: time limit in seconds for decoding one video.
        max_bad_fraction: share of undecodable videos, from 0 to 1, above which a run stops. Unless it is 0, one such
            video is tolerated in any data set.

    Raises:
        DataError: a field is out of range. It is also raised when a manifest is first read and its list
            has a mistake.
    """

    source: str = "csv"
    root: str = "."
    name: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    val_seed: int = 0
    group: str | None = None
    split: int = 1
    missing: str = "error"
    exclude: str | None = None
    labels: str = ONE
    balance: float = 0.0
    num_classes: int
    classes: str | tuple[str, ...] | None = None
    frames: int
    sampling: str = "uniform"
    stride: int = 1
    fps: float | None = None
    test_starts: str = "spread"
    frame_rate: float = 30.0
    size: int
    short_side: tuple[int, int] | None = None
    test_short_side: int | None = None
    resize: str = "bilinear"
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
    colour_ranges: str = "moderate"
    colour_jitter: float = 0.0
    grey: float = 0.0
    stretch: tuple[float, float] = (1.0, 1.0)
    randaugment: int = 0
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    erasing: float = 0.0
    workers: int = 2
    prefetch: int = 2
    limit_seconds: float = 60.0
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        for field in ("root", "train", "val", "test", "exclude", "classes"):
            if isinstance(path := getattr(self, field), (str, os.PathLike)):
                object.__setattr__(self, field, local_path(f"data.{field}", os.fspath(path)))
        for field, expected in mistakes(vars(self), annotations(type(self))).items():
            self._require(field, False, expected)
        for field, choices in (
            ("source", (*SOURCES, "motion_clips")),
            ("missing", ("error", "leave_out")),
            ("labels", (ONE, MANY)),
        ):
            self._require(field, getattr(self, field) in choices, " or ".join(map(repr, choices)))
        self._require(
            "name",
            bool(self.name) == (self.source == "tfds"),
            "a data set of TensorFlow Datasets for data.source=tfds, and None for other sources",
        )
        for field, least, most in _WHOLE_NUMBERS:
            is_within = least <= getattr(self, field) <= most
            self._require(field, is_within, f"a whole number from {least} to {most:,}")
        self._require(
            "frames",
            self.frames * self.size**2 <= MAX_PIXELS,
            f"at most {MAX_PIXELS // self.size**2:,} with data.size={self.size}: a clip has at most {MAX_PIXELS:,} "
            "pixels",
        )
        for field in ("balance", "flip", "brightness", "saturation", "gamma", "hue", "max_bad_fraction"):
            self._require(field, 0 <= getattr(self, field) <= 1, "from 0 to 1")
        if self.short_side is None:
            object.__setattr__(self, "short_side", default_short_side(self.size))
        self._require(
            "short_side",
            self.size <= self.short_side[0] <= self.short_side[1] <= _MAX_SIDE,
            f"two ascending whole numbers from data.size={self.size} to {_MAX_SIDE:,} pixels",
        )
        self._require(
            "test_short_side",
            self.test_short_side is None or self.size <= self.test_short_side <= _MAX_SIDE,
            f"None or a whole number from data.size={self.size} to {_MAX_SIDE:,} pixels",
        )
        for field, unit in (("frame_rate", "frames per second"), ("limit_seconds", "seconds")):
            self._require(field, getattr(self, field) > 0, f"{unit} above 0")
        check_fps(self.fps)  # a sampler that has no use for it does not check it
        check_test_starts(self.test_starts)
        compile_group(self.group)
        self._require(
            "group",
            self.group is None or self.source == "auto",
            "None unless data.source=auto, where a validation part may be drawn",
        )
        self.sampler, self._augment({})  # both check their fields

    def _require(self, field, condition, expected):
        if not condition:
            raise DataError(f"data.{field} must be {expected}, but is {shown(getattr(self, field))}.")

    @functools.cached_property
    def parts(self) -> Parts:
        """The lists of the parts, and their videos."""
        return Parts(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Parts)})

    def manifest(self, part: str) -> Manifest:
        """Returns the manifest of a part, 'train', 'val' or 'test', read and checked on first use."""
        return self.parts.manifest(part)

    @property
    def train_manifest(self) -> Manifest:
        """The training part. Without class names, its largest label must be num_classes - 1."""
        return self.parts.manifest("train")

    @property
    def val_manifest(self) -> Manifest:
        """The validation part."""
        return self.parts.manifest("val")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label, from the class file or the source; the numbers themselves if there are no names."""
        return self.parts.class_names

    @property
    def multi_hot(self) -> int | None:
        """The number of classes if clips have several labels, and so the width of the field `label`; otherwise None."""
        return self.num_classes if self.labels == MANY else None

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The sampler that chooses the frames of a clip."""
        return make_sampler(self.sampling, self.frames, self.stride, self.fps, self.test_starts)

    def test_sampler(self, frames: int | None = None) -> Sampler:
        """The sampler of test clips. `frames` is `eval.frames`, or None for clips as in training."""
        return self.sampler if frames is None else long_sampler(self.sampling, frames, self.fps, self.test_starts)

    @functools.cached_property
    def flip_map(self) -> dict[int, int]:
        """Label -> label of the mirrored clip, for the labels that `flip_swaps` and `flip_sides` swap."""
        pairs = (*self.flip_swaps, *(mirrored(self.class_names) if self.flip_sides else ()))
        return swapped_labels(pairs, self.class_names)

    def train_batches(self, *, batch_size, seed, start=0, process_index=0, process_count=1) -> Batches:
        """Returns an endless iterator over shuffled, augmented training batches.

        Global batch k depends on `seed` and k alone, not on the workers, the number of processes or `start`: the order
        and all random draws are functions of the position in the whole sequence. The processes divide a batch
        into consecutive videos: with 2 processes and 4 videos, process 1 gets videos 2 and 3. The `repeats` rows of a
        video are adjacent. A batch may hold the end of one epoch and the start of the next.

        Args:
            batch_size: rows of the global batch. A process gets `batch_size / process_count` of them.
            seed: seed of the order, of the sampled frames and of the augmentation.
            start: number of batches to skip, to resume a run.
            process_index, process_count: index of this process and number of processes in a distributed run.

        Returns:
            Iterator over dictionaries of arrays:
            `video`: uint8 (b, t, size, size, 3).
            `index`: int32 (b, t), the index of each frame in its video.
            `label`: int32 (b,), the class number; with several labels float32 (b, num_classes), 1 for the labels.
            `mask`: float32 (b,), 0 for a row without data.
            `id`: int32 (b,), index of the video in the manifest.
            `decoded`: int32 (b,), number of frames that were decoded for the row.
            `error`: bytes (b,), why the video could not be decoded, or empty. A row with an error has a black clip and
            mask 0. A replacement by another video would silently change the distribution of the classes.

        Raises:
            DataError: the manifest has a mistake, or the batch does not divide among the processes.
        """
        if batch_size % self.repeats:
            raise DataError(
                f"A batch of {batch_size} clips cannot hold data.repeats={self.repeats} clips of each video. Choose a "
                "batch size that is a multiple of data.repeats."
            )
        videos = batch_size // self.repeats
        load = functools.partial(
            load_train_rows,
            sampler=self.sampler,
            augment=self._augment(self.flip_map),
            repeats=self.repeats,
            open_video=self._open,
            multi_hot=self.multi_hot,
        )
        order = training_order(self.train_manifest.records, self.num_classes, self.balance, seed)
        # The processes divide the videos after random_map. Otherwise all processes would draw the same numbers.
        # The videos are batched before the workers divide the work. Otherwise the order would depend on the number of
        # workers.
        rows = order.random_map(with_generator)[start * videos : _MAX_VIDEOS]
        local_videos = videos_per_process(videos, process_count)
        clip_bytes = self.frames * self.size**2 * 3
        require_memory(local_videos * self.repeats * clip_bytes, self.workers, self.prefetch)
        tasks = ProcessBatches(rows, local_videos, process_index, process_count)
        make = functools.partial(train_batch, load=load)
        return Batches(tasks, make, workers=self.workers, prefetch=self.prefetch)

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
        passes: int = 1,
    ) -> Batches:
        """Returns an iterator over every video once, in order. Every process gets the same number of full batches.

        Args:
            batch_size: videos of the global batch. A process gets `batch_size / process_count` of them.
            clips: temporal views, see `sampling`.
            crops: spatial views, 1 or 3, see `augment.test_crops`.
            frames: frames per view, see `samplers.long_sampler`. None: `data.frames`, sampled by `data.sampling`.
            process_index, process_count: see `train_batches`.
            records: videos to use instead of the validation manifest.
            passes: how many times the iterator yields all videos. The workers decode ahead across passes.

        Returns:
            Iterator over dictionaries as from `train_batches`, with `video` uint8 (b, clips * crops, t, size, size, 3)
            and `index` (b, clips * crops, t). The crops of a clip are adjacent. Rows that fill up the last batch have
            id -1, mask 0, label 0 (with several labels, none) and no error.

        Raises:
            DataError: the manifest has a mistake, `clips` or `crops` is out of range, or the batch does not divide
                among the processes.
        """
        local_videos = videos_per_process(batch_size, process_count)
        if not isinstance(clips, int) or clips < 1:
            raise DataError(f"eval.clips must be a whole number of at least 1, but is {shown(clips)}.")
        crop_positions(crops)  # raises here rather than in a worker
        records = self.val_manifest.records if records is None else tuple(records)
        if not all(record.has_label for record in records):
            raise DataError("Some videos to evaluate have no label. Evaluation needs a list with labels.")
        count = math.ceil(len(records) / batch_size)
        padded = records + (PADDING,) * (count * batch_size - len(records))
        load = functools.partial(
            load_val_row,
            sampler=self.test_sampler(frames),
            clips=clips,
            crops=crops,
            size=self.size,
            short_side=self.test_short_side,
            resize=self.resize,
            open_video=self._open,
            multi_hot=self.multi_hot,
        )
        rows = grain.MapDataset.source(padded).repeat(passes)
        tasks = ProcessBatches(rows, local_videos, process_index, process_count)
        make = functools.partial(val_batch, load=load)
        return Batches(tasks, make, workers=min(self.workers, count), prefetch=self.prefetch)

    @property
    def max_batch_bytes(self) -> float:
        """The maximum size in bytes of a batch of this process, see `prefetch.max_batch_bytes`."""
        return max_batch_bytes(self.workers, self.prefetch)

    def _augment(self, flip_swaps):
        fields = {field.name for field in dataclasses.fields(TrainAugment)} - {"flip_swaps"}
        return TrainAugment(flip_swaps=flip_swaps, **{name: getattr(self, name) for name in fields})

    @property
    def _open(self):
        return functools.partial(open_video, frame_rate=self.frame_rate, limit_seconds=self.limit_seconds)

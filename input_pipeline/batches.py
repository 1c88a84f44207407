"""The rows of a batch: decoding and augmenting one video, and selecting the rows of one process.

Worker processes import this module, which therefore imports neither grain nor JAX: they would take 160 MB of each.
"""

import copy
import zlib
from pathlib import PurePath

import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.augment import SampledAugment, test_crops
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.videos import remarks

PADDING = Record(id=-1, path="", label=0, line=0)  # fills up the last validation batch

_TEXT_DTYPE = "S300"  # of one width, so that the rows of a batch can be stacked


class ProcessBatches:
    """What the batches of one process are made of: rows p * size to (p + 1) * size of every global batch in process p.

    The devices of a process hold its rows in the same order. If the mesh keeps the devices of each process together, a
    global batch has the same layout for any number of processes. Then dropout and the mixing of clips, which depend on
    the position of a row in the batch, are also the same. A mesh that follows the links of a TPU slice may not keep the
    devices of each process together.

    Args:
        rows: sequence of the rows of all global batches.
        size: rows of a batch of one process.
        process_index, process_count: index of this process and number of processes.
    """

    def __init__(self, rows, size: int, process_index: int, process_count: int):
        self._rows, self._size, self._process_index, self._process_count = rows, size, process_index, process_count

    def __len__(self):
        return len(self._rows) // (self._size * self._process_count)

    def __getitem__(self, index: int, /) -> list:
        first = (index * self._process_count + self._process_index) * self._size
        return [self._rows[first + row] for row in range(self._size)]


def videos_per_process(videos: int, process_count: int) -> int:
    """Returns the number of videos that each process loads for a global batch.

    Raises:
        DataError: the processes do not divide the batch evenly.
    """
    if videos % process_count:
        raise DataError(
            f"A batch of {videos} videos does not divide among {process_count} processes. Choose a batch size that "
            "is a multiple of the number of processes."
        )
    return videos // process_count


def with_generator(record, rng) -> tuple[Record, np.random.Generator]:
    """Returns what `train_batch` takes of a video. Grain uses its generators again, so that they must be copied."""
    return record, copy.deepcopy(rng)


def train_batch(videos, *, load) -> dict[str, np.ndarray]:
    """Returns a batch of training clips.

    Args:
        videos: pairs of a record and its generator.
        load: `load_train_rows` without its first two arguments.
    """
    loaded = [load(record, rng) for record, rng in videos]
    return {key: np.concatenate([rows[key] for rows in loaded]) for key in loaded[0]}


def val_batch(records, *, load) -> dict[str, np.ndarray]:
    """Returns a batch of all views of videos. `load` is `load_val_row` without its first argument."""
    return _stack([load(record) for record in records])


def load_train_rows(record, rng, *, sampler, augment, repeats, open_video, multi_hot=None):
    """Returns `repeats` augmented clips of the same frames of one video, stacked along the first axis.

    Args:
        record, rng: the video, and the generator of the random draws.
        sampler, augment, repeats, open_video: see `Pipeline.train_batches`.
        multi_hot: the number of classes if clips have several labels, otherwise None, see `_row`.
    """
    clips = np.zeros((repeats, sampler.frames, augment.size, augment.size, 3), np.uint8)
    label = _label(record, multi_hot)
    sampled: list[SampledAugment] = []

    def crop(frame):
        if not sampled:  # the windows depend on the size of the frames, which the first decoded frame gives
            sampled.extend(augment.sample(*frame.shape[:2], rng) for _ in range(repeats))
        return [one.crop(frame) for one in sampled]

    try:
        video = open_video(record)
        index = sampler.train(video.times, video.duration, rng)
        for crops, (positions,) in _each_frame(video, index, crop):
            for clip, crop_of_clip in zip(clips, crops, strict=True):
                clip[positions] = crop_of_clip
    except DecodeError as error:
        index = np.zeros(sampler.frames)
        rows = [_row(record, label, np.zeros_like(clips[0]), index, multi_hot, error=str(error))] * repeats
    else:
        remark = " ".join(remarks(video))
        finished = [one.finish(clip, label) for clip, one in zip(clips, sampled, strict=True)]
        # The frames were decoded once: only the first row counts them.
        rows = [
            _row(record, label, clip, index, multi_hot, remark, video.decoded * (number == 0))
            for number, (clip, label) in enumerate(finished)
        ]
    return _stack(rows)


def load_val_row(record, *, sampler, clips, crops, size, short_side, resize, open_video, multi_hot=None):
    """Returns all views of one video, (clips * crops, t, size, size, 3), the crops of a clip next to each other.

    For `multi_hot` see `load_train_rows`.
    """
    label = _label(record, multi_hot)
    views = np.zeros((clips, crops, sampler.frames, size, size, 3), np.uint8)
    shape, no_index = (clips * crops, *views.shape[2:]), np.zeros((clips * crops, sampler.frames))
    if record.id == PADDING.id:
        return _row(record, label, views.reshape(shape), no_index, multi_hot, error="")

    def crop(frame):
        return test_crops(frame[None], size, crops, short_side, resize)[:, 0]

    try:
        video = open_video(record)
        index = sampler.test(video.times, video.duration, clips, video_seed(record))
        for frame_crops, (clip, position) in _each_frame(video, index, crop):
            views[clip, :, position] = frame_crops
    except DecodeError as error:
        return _row(record, label, np.zeros(shape, np.uint8), no_index, multi_hot, error=str(error))
    index, remark = np.repeat(index, crops, axis=0), " ".join(remarks(video))
    return _row(record, label, views.reshape(shape), index, multi_hot, remark, video.decoded)


def _each_frame(video, index, crop):
    """Yields the crops of the frames of an array of indices, each with its positions in the array, as from `nonzero`.

    Clips may share frames, and each distinct frame is decoded once. It is dropped before the next one is decoded, since
    a frame may be many times as large as its crops.

    Args:
        video: see `videos.OpenVideo`.
        index: array of ints, of any shape.
        crop: function of a frame, (y, x, 3) uint8.
    """
    distinct = np.unique(index)
    frames = video.each(distinct, one_limit=True)
    for number in distinct:
        yield crop(next(frames)), np.nonzero(index == number)


def video_seed(record: Record) -> int:
    """Returns a number that depends on the name of the video alone: not on its folder, its format or the list."""
    name = PurePath(record.name or record.path).stem
    if not record.name and record.position is not None:
        name += f"/{record.position}"
    return zlib.crc32(name.encode("utf-8", "surrogateescape"))


def _stack(rows):
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _label(record: Record, multi_hot: int | None) -> int | tuple[int, ...]:
    return record.label if multi_hot is None else record.labels or ()


def _row(record, label, clip, index, multi_hot, remark="", decoded=0, error: str | None = None):
    """Returns one row of a batch. A row with an `error`, even an empty one, has mask 0.

    The field `label` is the class number, or, if `multi_hot` is a number of classes, a vector of that length that is 1
    for the class numbers in the tuple `label` and 0 for all others.
    """
    if multi_hot is None:
        target = np.int32(label)
    else:
        target = np.zeros(multi_hot, np.float32)
        target[list(label)] = 1
    return {
        "video": clip,
        "index": np.asarray(index, np.int32),
        "label": target,
        "mask": np.float32(error is None),
        "id": np.int32(record.id),
        "decoded": np.int32(decoded),
        "error": np.array((error or "").encode("utf-8", "backslashreplace"), _TEXT_DTYPE),
        "remark": np.array(remark.encode(), _TEXT_DTYPE),
    }

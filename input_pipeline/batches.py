"""The rows of a batch, and the share of a process in it."""

import dataclasses

import grain
import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.augment import test_crops
from input_pipeline.errors import DataError, DecodeError

_ERROR_DTYPE = "S300"  # of fixed width, to travel through the shared memory between processes
PADDING = Record(id=-1, path="", label=0, line=0)


class ProcessShare(grain.MapDataset):
    """Of every batch the rows of one process, which follow each other: rows p * size to (p + 1) * size of process p.

    The devices of a process hold them in the same order, so that, where a mesh keeps the devices of a process together,
    a global batch is laid out alike for any number of processes, and so is all that depends on a row's place in it:
    dropout, or the clip that it is mixed with. A mesh along the links of a TPU slice may not.
    """

    def __init__(self, parent: grain.MapDataset, size: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._size, self._process_index, self._process_count = size, process_index, process_count

    def __len__(self):
        return len(self._parent) // self._process_count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._size)
        return self._parent[(batch * self._process_count + self._process_index) * self._size + row]


def train_rows(record, rng, *, sampler, augment, repeats, open_video):
    """The rows of one video, stacked."""
    try:
        video = open_video(record)
        index = sampler.train(video.times, video.duration, rng)
        frames = video.frames(index)
    except DecodeError as error:
        empty = np.zeros((sampler.frames, augment.size, augment.size, 3), np.uint8)
        rows = [_row(record, empty, np.zeros(sampler.frames), error=error)] * repeats
    else:
        clips = [augment(frames, record.label, rng) for _ in range(repeats)]
        rows = [
            _row(dataclasses.replace(record, label=label), clip, index, video.decoded * (number == 0))
            for number, (clip, label) in enumerate(clips)
        ]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def flatten(batch):
    """(videos, repeats, ...) -> (rows, ...)."""
    return {key: value.reshape(-1, *value.shape[2:]) for key, value in batch.items()}


def val_row(record, *, sampler, clips, crops, size, short_side, open_video):
    empty = np.zeros((clips * crops, sampler.frames, size, size, 3), np.uint8)
    nowhere = np.zeros((clips * crops, sampler.frames))
    if record.id == PADDING.id:
        return _row(record, empty, nowhere, error="")
    try:
        video = open_video(record)
        # Clips share frames: each is decoded and resized once.
        indices, place = np.unique(sampler.test(video.times, video.duration, clips), return_inverse=True)
        frames = video.frames(indices)
    except DecodeError as error:
        return _row(record, empty, nowhere, error=error)
    place = place.reshape(clips, sampler.frames)
    views = test_crops(frames, size, crops, short_side)[:, place]
    return _row(
        record, views.swapaxes(0, 1).reshape(empty.shape), np.repeat(indices[place], crops, axis=0), video.decoded
    )


def _row(record, video, index, decoded=0, error=None):
    """One row of a batch. With an `error`, even an empty one, it does not count."""
    message = str(error or "").encode("utf-8", "replace")
    return {
        "video": video,
        "index": np.asarray(index, np.int32),
        "label": np.int32(record.label),
        "mask": np.float32(error is None),
        "id": np.int32(record.id),
        "decoded": np.int32(decoded),
        "error": np.array(message, _ERROR_DTYPE),
    }


def local_size(batch_size, process_count):
    if batch_size % process_count:
        raise DataError(f"A batch of {batch_size} clips does not divide among {process_count} processes.")
    return batch_size // process_count

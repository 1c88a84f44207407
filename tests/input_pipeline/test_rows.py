"""Clips cost memory by their own size, not by that of the video, and have the pixels and draws of whole frames."""

import gc
import hashlib
import tracemalloc

import av
import cv2
import numpy as np
import pytest
from numbered import write

from input_pipeline import augment, colour, randaugment
from input_pipeline.annotations import Record
from input_pipeline.augment import TrainAugment
from input_pipeline.batches import load_train_rows, load_val_row
from input_pipeline.samplers import make_sampler
from input_pipeline.videos import open_video

RECORD = Record(0, "clip.mp4", 1, 1)


class Noise:
    """A video of noise at 25 frames per second. Counts the frames that are in memory at once."""

    def __init__(self, count, height, width):
        self.times, self.duration, self.decoded, self.remarks = np.arange(count) / 25, count / 25, 0, ()
        self._size = height, width

    def frames(self, indices):
        self.decoded += len(np.unique(indices))
        return np.stack([self._frame(index) for index in indices])

    def each(self, indices, *, one_limit=False):
        for index in indices:
            self.decoded += 1
            yield self._frame(index)

    def _frame(self, index):
        return np.random.default_rng(index).integers(0, 256, (*self._size, 3), np.uint8)


def nearest(frame, box, size, method):
    """Resizes as `resize_box`, in a way that is the same on every machine."""
    top, left, height, width = box
    return frame[top + np.arange(size)[:, None] * height // size, left + np.arange(size) * width // size]


def number(values):
    return np.uint8(int(np.abs(values).sum() * 1e3) % 256)


AUGMENTS = [
    dict(),
    dict(brightness=0.5, gamma=0.5, erasing=0.5),
    dict(crop="resized", randaugment=4, erasing=0.5),
    dict(stretch=(1.0, 1.5), colour_jitter=0.8, grey=0.3, flip=0.2),
    dict(resize="bicubic", randaugment=2, magnitude=9.0),
]
SAMPLERS = [("uniform", 1), ("dense", 3), ("tokenshift", 9)]  # the last goes on from the beginning of the video


@pytest.fixture
def exact(monkeypatch):
    """Replaces floating-point operations on pixels by exact ones. They are tested elsewhere."""
    monkeypatch.setattr(augment, "resize_box", nearest)
    monkeypatch.setitem(
        colour.RANGES, "moderate", lambda clip, applied, strengths: clip + number(applied) + number(strengths)
    )
    monkeypatch.setattr(colour, "jitter", lambda clip, strengths: clip ^ number(strengths))
    monkeypatch.setattr(colour, "grey", lambda clip: 255 - clip)
    operations = [lambda clip, severity, n=n: clip + np.uint8(16 * n) + number(severity) for n in range(15)]
    monkeypatch.setattr(randaugment, "OPERATIONS", operations)


def digest(rows):
    names = ("video", "index", "label", "decoded")
    return hashlib.sha256(b"".join(np.ascontiguousarray(row[name]).tobytes() for row in rows for name in names))


@pytest.mark.quick
def test_clips_are_those_that_were_cut_from_whole_frames(exact):
    """The digests were made when all frames of a clip were decoded before the draws of its augmentation."""
    rows = []
    for seed, options in enumerate(AUGMENTS * 4):
        sampling, stride = SAMPLERS[seed % 3]
        rows.append(
            load_train_rows(
                RECORD,
                np.random.default_rng(seed),
                sampler=make_sampler(sampling, 6, stride, None, "spread"),
                augment=TrainAugment(size=16, short_side=(18, 40), flip_swaps={1: 2}, **options),
                repeats=1 + seed % 3,
                open_video=lambda record, seed=seed: Noise(20 + seed, 48 + seed, 64),
            )
        )
    train = digest(rows).hexdigest()[:16]
    rows = [
        load_val_row(
            RECORD,
            sampler=make_sampler(sampling, 6, stride, None, "spread"),
            clips=clips,
            crops=crops,
            size=16,
            short_side=20,
            resize="bilinear",
            open_video=lambda record, width=width: Noise(30, 48, width),
        )
        for sampling, stride in SAMPLERS
        for clips, crops, width in ((1, 1, 64), (4, 3, 40))
    ]
    assert (train, digest(rows).hexdigest()[:16]) == ("f85d9203487f268d", "da770397ca0fa324")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A video of 24 frames of 1920 x 1080 pixels as a file, and 16 of them as a folder of pictures."""
    root = tmp_path_factory.mktemp("large")
    (root / "frames").mkdir()
    with av.open(str(root / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for level in range(24):
            picture = np.full((1080, 1920, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if level < 16:
                cv2.imwrite(str(root / "frames" / f"{level:02d}.jpg"), picture)
        container.mux(stream.encode())
    return root


@pytest.mark.parametrize("name", ["clip.mp4", "frames"])
def test_memory_follows_the_clip_and_not_the_video(large, name):
    """Neither the number of frames nor that of clips and crops multiplies the size of a frame."""
    record, sampler = Record(0, str(large / name), 0, 1), make_sampler("uniform", 16, 1, None, "spread")
    augmentation = TrainAugment(size=32, short_side=(32, 40))
    views = dict(clips=4, crops=3, size=32, short_side=None, resize="bilinear")
    rows = []
    gc.collect()
    gc.disable()  # no frame may wait for the garbage collector, which seldom runs
    tracemalloc.start()
    try:
        rows.append(
            load_train_rows(
                record,
                np.random.default_rng(0),
                sampler=sampler,
                augment=augmentation,
                repeats=4,
                open_video=open_video,
            )
        )
        rows.append(load_val_row(record, sampler=sampler, open_video=open_video, **views))
        peak = tracemalloc.get_traced_memory()[1]
        waiting = [item for item in gc.get_objects() if isinstance(item, av.VideoFrame) and item.width > 16]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert [row["video"].shape[0] for row in rows] == [4, 12] and all(row["mask"].all() for row in rows)
    assert not waiting and peak < 4 * 1080 * 1920 * 3


@pytest.mark.quick
def test_rows_hold_the_remarks_on_their_video(tmp_path):
    """A recording that was paused for a minute, of which the frames count as equally long, and one that was not."""
    for gap, remark in ((60000, b"1 of 20 frames fills 99% of the duration."), (0, b"")):
        path = write(tmp_path / f"{gap}.mkv", count=20, pts=[40 * n + gap * (n > 5) for n in range(20)])
        record, sampler = Record(0, path, 0, 1), make_sampler("uniform", 4, 1, None, "spread")
        views = dict(clips=1, crops=1, size=16, short_side=None, resize="bilinear")
        row = load_val_row(record, sampler=sampler, open_video=open_video, **views)
        assert row["remark"].item().startswith(remark) and row["index"].tolist() == [[2, 7, 12, 17]]

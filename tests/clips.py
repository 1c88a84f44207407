"""A small data set of noisy clips, some of them broken, and batches of it."""

import itertools
from pathlib import Path

import av
import numpy as np

from input_pipeline import Pipeline

CLIPS, BAD = 22, (3, 17)  # number of clips, and those that will not decode
FIELDS = {"video", "index", "label", "mask", "id", "decoded", "error", "remark"}


def write_clips(root: Path) -> str:
    """Writes 22 clips of different lengths in classes 0 to 2, two of them broken, with lists. Returns the folder."""
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        if i in BAD:
            (root / f"{i}.mp4").write_bytes(b"not a video")
            continue
        with av.open(str(root / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
            for level in rng.integers(0, 200, 8 + i):
                picture = rng.integers(0, 55, (40, 48, 3), np.uint8) + np.uint8(level)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    (root / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i % 3}\n" for i in range(CLIPS)))
    (root / "val.csv").write_text("".join(f"{i}.mp4,{i % 3}\n" for i in range(11)))
    (root / "classes.txt").write_text("left\nright\nstay\n")
    return str(root)


def pipeline(folder, **changes) -> Pipeline:
    """Returns a pipeline of clips of 4 frames of 24 x 24 pixels, without workers."""
    fields = dict(root=folder, num_classes=3, frames=4, size=24, short_side=(24, 32), workers=0)
    return Pipeline(**{**fields, "brightness": 0.5, "saturation": 0.5, **changes})


def take(batches, count):
    """Returns copies of the first batches, or of all of them, and ends the workers."""
    try:
        return [{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(batches, count)]
    finally:
        batches.close()


def assert_equal_batches(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() == FIELDS
        for key in FIELDS:
            np.testing.assert_array_equal(a[key], e[key])


def join_processes(batches):
    """Returns the global batches of the batches of every process, whose rows follow each other."""
    return [
        {key: np.concatenate([local[key] for local in step]) for key in FIELDS} for step in zip(*batches, strict=True)
    ]

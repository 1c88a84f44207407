"""Reading data sets in the layouts that their authors publish."""

import os

import pytest
from numbered import read_number

from input_pipeline import DataError
from input_pipeline.annotations import read_manifest
from input_pipeline.sources import SOURCES
from input_pipeline.videos import open_video

FRAMES = 8  # of every clip
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
FRAME_FOLDER = ""  # the extension of a folder of frames


def read(source, root, split_name="VAL", path=None, **kwargs):
    module = SOURCES[source]
    kwargs.setdefault("complete", split_name == "TRAIN")
    return read_manifest(path or getattr(module, split_name), source=source, root=root, train=module.TRAIN, **kwargs)


def summary(manifest):
    """Returns the path and the class of every video, after a check of all its frames."""
    rows = []
    for record in manifest.records:
        video = open_video(record)
        assert [read_number(frame) for frame in video.frames(range(len(video.times)))] == list(range(FRAMES))
        label = manifest.classes[record.label] if manifest.classes and record.label >= 0 else record.label
        rows.append((record.path, label))
    assert [record.id for record in manifest.records] == list(range(len(manifest.records)))
    return rows


def under(root, *pairs):
    return [(os.path.join(root, path), label) for path, label in pairs]


def refusal(source, root, split_name="VAL", **kwargs):
    """Returns the message of the DataError that reading the list must raise."""
    kwargs.setdefault("num_classes", 2)
    with pytest.raises(DataError) as error:
        read(source, root, split_name, **kwargs)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message

"""The videos of `tests.own_videos`: what a frame shows, and that joined videos hold the same frames."""

import csv

import numpy as np
import pytest

from input_pipeline.decode import Video
from tests.own_videos import CLASSES, FORMATS, render, write_long, write_set


@pytest.mark.quick
def test_one_frame_does_not_tell_the_class():
    """The first frame is the same in all classes, and its position is drawn uniformly. So is every later one's."""
    clips = {label: render(way, 48, 64, 9, np.random.default_rng(7)) for label, way in CLASSES.items()}
    for clip in clips.values():
        np.testing.assert_array_equal(clip[0], clips["stands still"][0])
    moved = [label for label in clips if (clips[label][5] != clips[label][0]).any()]
    assert moved == [label for label in CLASSES if label != "stands still"]


def test_long_videos_hold_the_frames_of_the_short_ones(tmp_path):
    videos = write_set(tmp_path / "short", clips=len(FORMATS))
    order = write_long(tmp_path / "long", videos, clips=len(FORMATS))
    with open(tmp_path / "long" / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(order) == sorted(videos) and [row["label"] for row in rows] == [label for _, label in order]
    for name in {row["path"] for row in rows}:
        video = Video(str(tmp_path / "long" / name))
        parts = [(path, row) for (path, _), row in zip(order, rows, strict=True) if row["path"] == name]
        times = np.array(video.times)
        for path, row in parts:
            short = Video(str(path))
            (numbers,) = np.nonzero((float(row["start"]) <= times) & (times < float(row["end"])))
            assert len(numbers) == len(short.times)
            np.testing.assert_array_equal(video.frames(numbers), short.frames(range(len(numbers))))

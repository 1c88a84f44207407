"""The videos of `tests.own_videos`: what a frame shows, and that joined videos hold the same frames."""

import numpy as np
import pytest

from input_pipeline.annotations import read_manifest
from input_pipeline.videos import open_video
from tests.own_videos import CLASSES, FORMATS, render, write_long, write_set


@pytest.mark.quick
def test_one_frame_does_not_tell_the_class():
    """The first frame is the same in all classes, and its position is drawn uniformly. So is every later one's."""
    clips = {label: render(way, 48, 64, 9, np.random.default_rng(7)) for label, way in CLASSES.items()}
    for clip in clips.values():
        np.testing.assert_array_equal(clip[0], clips["stands still"][0])
    moved = [label for label in clips if (clips[label][5] != clips[label][0]).any()]
    assert moved == [label for label in CLASSES if label != "stands still"]


def test_the_parts_of_long_videos_are_the_clips_of_the_short_ones(tmp_path):
    videos = write_set(tmp_path / "short", clips=len(FORMATS))
    order = write_long(tmp_path / "long", videos, clips=len(FORMATS))
    short, long = (
        read_manifest(name, source="auto", root=str(tmp_path / folder), num_classes=len(CLASSES), complete=True)
        for name, folder in ((".", "short"), ("train.csv", "long"))
    )
    assert long.classes == short.classes == tuple(CLASSES)
    record_of = {record.path: record for record in short.records}
    for (path, _), part in zip(order, long.records, strict=True):
        record = record_of[str(path)]
        video, expected = open_video(part), open_video(record)
        assert part.label == record.label and video.duration == pytest.approx(expected.duration, abs=0.02)
        np.testing.assert_allclose(video.times, expected.times, atol=2e-3)
        numbers = range(len(expected.times))
        np.testing.assert_array_equal(video.frames(numbers), expected.frames(numbers))

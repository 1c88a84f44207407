"""A motion clip differs from its partner only in the order of the frames, in memory and in the stored files."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from input_pipeline import motion_clips
from input_pipeline.errors import DataError
from input_pipeline.motion_clips import (
    CLASSES,
    MIRRORED,
    REVERSED,
    MotionClips,
    ensure,
    render_frames,
    split_digits,
)

TINY = MotionClips(train_pairs=10, val_pairs=5, seed=3)
REPOSITORY = Path(__file__).parents[2]


def silent(line):
    pass


def direction(label, clip):
    """Measures the motion: positive for the first class of the pair of the label, negative for the second."""
    clip = clip[2::5].astype(float)
    bright = clip.mean(-1) > 170
    y, x = np.stack([np.argwhere(frame).mean(0) if frame.any() else (0, 0) for frame in bright], axis=1)
    motion = CLASSES[min(label, REVERSED[label])]
    if motion == "slide left":
        return x[0] - x[-1]
    if motion == "slide up":
        return y[0] - y[-1]
    if motion == "grow":
        return bright[-1].sum() - bright[0].sum()
    if motion == "turn clockwise":
        step_x, step_y = np.diff(x), np.diff(y)
        return (step_x[:-1] * step_y[1:] - step_y[:-1] * step_x[1:]).sum()
    return clip[-1].std() - clip[0].std()


def read_rows(root, split):
    with open(root / f"{split}.csv", newline="") as file:
        return [(row["path"], int(row["label"])) for row in csv.DictReader(file)]


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rendering_folders(root):
    return [path for path in root.parent.glob(".clips.*.tmp") if path.is_dir()]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return ensure(tmp_path_factory.mktemp("motion") / "clips", TINY, report=silent, workers=1)


@pytest.mark.quick
def test_labels_form_pairs():
    for label in range(len(CLASSES)):
        assert REVERSED[label] != label and REVERSED[REVERSED[label]] == label
        assert MIRRORED[label] in (label, REVERSED[label]) and MIRRORED[MIRRORED[label]] == label


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_motion_reverses_and_mirrors_as_the_labels_say(label):
    def names(clip, expected):
        return (direction(label, clip) > 0) == (expected % 2 == 0)

    digits = split_digits(0)[0]
    for seed in range(5):
        clip = render_frames(label, digits[seed], seed)
        assert clip.shape == (40, 64, 64, 3) and clip.dtype == np.uint8
        assert names(clip, label)
        assert names(clip[::-1], REVERSED[label])
        assert names(clip[:, :, ::-1], MIRRORED[label])


def test_the_stored_reversal_decodes_to_exactly_the_reversed_frames(rendered):
    for split in ("train", "val"):
        rows = read_rows(rendered, split)
        for (path, label), (other_path, other_label) in zip(rows[::2], rows[1::2], strict=True):
            clip, other = decode(rendered / path), decode(rendered / other_path)
            assert other_label == REVERSED[label]
            assert np.array_equal(other, clip[::-1])
            assert not np.array_equal(other, clip)


@pytest.mark.quick
def test_decoded_frames_resemble_the_rendered_ones(rendered):
    path, label = read_rows(rendered, "val")[0]
    clip = render_frames(label, split_digits(TINY.seed)[1][0], [TINY.seed, 1, 0])
    assert np.abs(decode(rendered / path).astype(float) - clip).mean() < 8


def test_classes_balance_in_each_split(rendered):
    assert (rendered / "classes.txt").read_text().splitlines() == list(CLASSES)
    for split, pairs in (("train", TINY.train_pairs), ("val", TINY.val_pairs)):
        rows = read_rows(rendered, split)
        assert Counter(label for _, label in rows) == dict.fromkeys(range(len(CLASSES)), pairs // 5)
        assert {rendered / path for path, _ in rows} == set((rendered / split).iterdir())


def test_every_frame_is_a_keyframe_at_the_stated_rate(rendered):
    with av.open(str(rendered / "train/000000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 64)
        assert (stream.average_rate, float(stream.duration * stream.time_base)) == (25, 1.6)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert len(packets) == 40 and all(packet.is_keyframe and packet.pts == packet.dts for packet in packets)


def test_splits_share_no_digit():
    train, val = ({digit.tobytes() for digit in digits} for digits in split_digits(0))
    assert len(train) > 1000 and len(val) > 300 and not train & val


def test_frames_depend_on_the_seed_alone(rendered, tmp_path):
    again = ensure(tmp_path / "again", TINY, report=silent, workers=2)
    other = ensure(tmp_path / "other", MotionClips(5, 5, seed=4), report=silent, workers=1)
    for path, _ in read_rows(rendered, "train") + read_rows(rendered, "val"):
        assert np.array_equal(decode(again / path), decode(rendered / path))
    assert not np.array_equal(decode(other / "val/000000.mp4"), decode(rendered / "val/000000.mp4"))


def test_a_second_call_renders_nothing(rendered):
    lines = []
    assert ensure(rendered, TINY, report=lines.append) == rendered
    assert lines == []


def test_other_content_is_refused_and_kept(rendered, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = (rendered / "train.csv").stat()
    for root, spec in ((tmp_path, TINY), (tmp_path / "notes.txt", TINY), (rendered, MotionClips(5, 5))):
        with pytest.raises(DataError, match=str(root)):
            ensure(root, spec, report=silent)
    with pytest.raises(DataError, match="notes.txt"):
        ensure(tmp_path / "notes.txt" / "clips", TINY, report=silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]
    assert (rendered / "train.csv").stat() == before
    with pytest.raises(DataError, match="train_pairs"):
        MotionClips(train_pairs=12)


def test_two_lines_reported_and_an_empty_folder_filled(tmp_path):
    lines = []
    ensure(tmp_path, MotionClips(5, 5), report=lines.append, workers=1)
    assert len(lines) == 2 and all("20 motion clips" in line for line in lines)
    assert json.loads((tmp_path / "motion_clips.json").read_text())["train_pairs"] == 5


def test_a_failed_render_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, clip, fps):
        raise OSError("no space left")

    monkeypatch.setattr(motion_clips, "_write_clip", fail)
    root = tmp_path / "clips"
    with pytest.raises(DataError, match="clips: no space left"):
        ensure(root, TINY, report=silent, workers=1)
    assert not root.exists() and not rendering_folders(root)


def test_concurrent_calls_render_once(tmp_path):
    root, lines = tmp_path / "clips", []
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ensure, root, MotionClips(5, 5), lines.append, 1) for _ in range(2)]
    assert [call.result() for call in calls] == [root, root]
    assert len(lines) == 2


def test_a_killed_render_leaves_no_process_and_no_incomplete_data(tmp_path):
    root = tmp_path / "clips"
    script = tmp_path / "render.py"
    script.write_text(
        "from input_pipeline.motion_clips import ensure\n"
        f"if __name__ == '__main__':\n    ensure({str(root)!r}, workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".clips.*.tmp/train/*.mp4")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=10)  # returns when the workers, which share its standard output, have ended too
    assert not root.exists() and rendering_folders(root)
    ensure(root, MotionClips(5, 5), report=silent, workers=1)
    assert not rendering_folders(root) and len(read_rows(root, "val")) == 10

"""Batches are a function of the seed and their number alone, and no process is left behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from input_pipeline import DataError, Pipeline, Record
from input_pipeline.augment import test_crops as crops_of
from input_pipeline.decode import Video
from input_pipeline.sampling import Uniform

CLIPS, BAD = 22, (3, 17)
FIELDS = {"video", "index", "label", "mask", "id", "decoded", "error"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """22 clips of different lengths and noise, two of them broken, in classes 0 to 2."""
    root = tmp_path_factory.mktemp("clips")
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


def pipeline(folder, **changes):
    return Pipeline(
        **{
            **dict(
                root=folder,
                num_classes=3,
                frames=4,
                size=24,
                short_side=(24, 32),
                workers=0,
                brightness=0.5,
                saturation=0.5,
            ),
            **changes,
        }
    )


def take(batches, count):
    """Copies of the first batches, or of all of them; ends the workers."""
    try:
        return [{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(batches, count)]
    finally:
        batches.close()


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() == FIELDS
        for key in FIELDS:
            np.testing.assert_array_equal(a[key], e[key])


def joined(parts):
    """The rows of the processes follow each other in the global batch."""
    return [{key: np.concatenate([part[key] for part in step]) for key in FIELDS} for step in zip(*parts, strict=True)]


@pytest.fixture(scope="session")
def reference(folder):
    return take(pipeline(folder).train_batches(batch_size=4, seed=5), 12)


def test_train_batch_layout(reference):
    for batch in reference:
        assert batch["video"].shape == (4, 4, 24, 24, 3) and batch["video"].dtype == np.uint8
        for key, dtype in (("label", "int32"), ("mask", "float32"), ("id", "int32"), ("error", "S300")):
            assert batch[key].shape == (4,) and batch[key].dtype == dtype
        np.testing.assert_array_equal(batch["label"], batch["id"] % 3)


def test_undecodable_videos_are_masked_rows(reference):
    ids, mask, error, video = (np.concatenate([b[key] for b in reference]) for key in ("id", "mask", "error", "video"))
    bad = np.isin(ids, BAD)
    assert bad.sum() >= 4
    np.testing.assert_array_equal(mask, ~bad)
    assert (video[bad] == 0).all() and (video[~bad].reshape(-1, 4 * 24 * 24 * 3).max(1) > 0).all()
    for i, message in zip(ids, error, strict=True):
        assert f"{i}.mp4".encode() in message if i in BAD else message == b""


def test_epochs_hold_every_video_once_in_another_order(reference):
    ids = np.concatenate([batch["id"] for batch in reference])
    first, second = ids[:CLIPS], ids[CLIPS : 2 * CLIPS]
    assert sorted(first) == sorted(second) == list(range(CLIPS))
    assert (first != second).any() and (first != np.sort(first)).any()


def test_epochs_draw_anew(reference):
    rows = {}
    for batch in reference:
        for i, video in zip(batch["id"], batch["video"], strict=True):
            rows.setdefault(i, []).append(video)
    assert all((first != second).any() for i, (first, second, *_) in rows.items() if i not in BAD)


def test_seeds_differ(folder, reference):
    other = take(pipeline(folder).train_batches(batch_size=4, seed=6), 2)
    assert any((a["id"] != b["id"]).any() for a, b in zip(other, reference, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(folder, reference, workers):
    batches = pipeline(folder, workers=workers).train_batches(batch_size=4, seed=5)
    assert_equal(take(batches, 12), reference)


def test_batches_do_not_depend_on_the_number_of_processes(folder, reference):
    parts = [
        take(pipeline(folder).train_batches(batch_size=4, seed=5, process_index=p, process_count=2), 12)
        for p in range(2)
    ]
    assert parts[0][0]["video"].shape[0] == 2
    assert_equal(joined(parts), reference)


@pytest.mark.parametrize("start", [1, 7])
def test_start_equals_skipping(folder, reference, start):
    assert_equal(take(pipeline(folder).train_batches(batch_size=4, seed=5, start=start), 12 - start), reference[start:])
    parts = [
        take(
            pipeline(folder).train_batches(batch_size=4, seed=5, start=start, process_index=p, process_count=4),
            12 - start,
        )
        for p in range(4)
    ]
    assert_equal(joined(parts), reference[start:])


@pytest.mark.parametrize("repeats", [2, 4])
def test_repeats_are_clips_of_the_same_frames(folder, repeats):
    data = pipeline(folder, repeats=repeats)
    batches = take(data.train_batches(batch_size=8, seed=5), 12)
    for batch in batches:
        ids, index, decoded, clips = (
            batch[key].reshape(-1, repeats, *batch[key].shape[1:]) for key in ("id", "index", "decoded", "video")
        )
        assert (ids == ids[:, :1]).all() and (index == index[:, :1]).all()
        good = batch["mask"].reshape(-1, repeats)[:, 0] > 0
        assert (decoded[good, 0] >= 4).all() and not decoded[:, 1:].any(), "and decoded once"
        assert all((clip[0] != clip[1]).any() for clip in clips[good])
    videos = np.concatenate([batch["id"][::repeats] for batch in batches])
    assert sorted(videos[:CLIPS]) == list(range(CLIPS)), "a pass takes as many more batches"
    parts = [take(data.train_batches(batch_size=8, seed=5, process_index=p, process_count=2), 12) for p in range(2)]
    assert_equal(joined(parts), batches)


def test_a_batch_must_hold_all_repeats_of_a_video(folder):
    with pytest.raises(DataError, match=r"9 clips.*data\.repeats=2"):
        pipeline(folder, repeats=2).train_batches(batch_size=9, seed=0)


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (4, 0), (11, 0), (32, 0), (4, 2)])
@pytest.mark.parametrize("process_count", [1, 2])
def test_validation_counts_every_video_once(folder, batch_size, workers, process_count):
    batch_size *= process_count
    parts = [
        take(
            pipeline(folder, workers=workers).val_batches(
                batch_size=batch_size, clips=2, crops=3, process_index=p, process_count=process_count
            ),
            99,
        )
        for p in range(process_count)
    ]
    steps = -(-11 // batch_size)
    assert [len(part) for part in parts] == [steps] * process_count
    batches = joined(parts)
    ids, mask, label, error, video = (
        np.concatenate([b[key] for b in batches]) for key in ("id", "mask", "label", "error", "video")
    )
    assert video.shape == (steps * batch_size, 6, 4, 24, 24, 3)
    assert ids.tolist() == list(range(11)) + [-1] * (len(ids) - 11)
    np.testing.assert_array_equal(mask, (ids >= 0) & ~np.isin(ids, BAD))
    np.testing.assert_array_equal(label, np.where(ids >= 0, ids % 3, 0))
    np.testing.assert_array_equal(error != b"", np.isin(ids, BAD))
    assert (video[mask == 0] == 0).all()


def test_the_index_says_which_frame_of_its_video_each_frame_is(folder):
    data = pipeline(folder)
    train = take(data.train_batches(batch_size=4, seed=5), 2)
    views = take(data.val_batches(batch_size=11, clips=2, crops=3), 1)[0]
    long = take(data.val_batches(batch_size=11, clips=1, crops=1, frames=9), 1)[0]
    for batch in (*train, views, long):
        assert batch["index"].dtype == np.int32 and batch["index"].shape == batch["video"].shape[:-3]
    for i in (i for i in range(11) if i not in BAD):
        path = data.val_manifest.records[i].path
        video = Video(path)
        expected = Uniform(4).test(video.times, video.duration, 2)
        np.testing.assert_array_equal(views["index"][i], np.repeat(expected, 3, axis=0))
        np.testing.assert_array_equal(long["index"][i], Uniform(9).test(video.times, video.duration, 1))
        np.testing.assert_array_equal(views["video"][i, 1], crops_of(video.frames(expected[0]), 24, 3)[1])
    index = np.concatenate([batch["index"][batch["mask"] > 0] for batch in train])
    assert (np.diff(index, axis=1) >= 0).all() and index.max() > 0


def test_validation_views_are_clip_major(folder):
    options = dict(batch_size=11, crops=3)
    all_views = take(pipeline(folder).val_batches(clips=2, **options), 1)[0]["video"]
    centre = take(pipeline(folder).val_batches(clips=2, batch_size=11, crops=1), 1)[0]["video"]
    np.testing.assert_array_equal(all_views[:, [1, 4]], centre)
    assert (all_views[0, 0] != all_views[0, 3]).any()


def test_validation_of_chosen_records(folder):
    chosen = [Record(7, f"{folder}/4.mp4", 1, 1)]
    for workers in (0, 2):
        (batch,) = take(
            pipeline(folder, workers=workers).val_batches(batch_size=2, clips=1, crops=1, records=chosen), 9
        )
        assert batch["id"].tolist() == [7, -1] and batch["mask"].tolist() == [1, 0]


@pytest.mark.parametrize("swaps", [(("left", "right"),), ((0, 1),), [["right", 0]]])
def test_flip_swaps_by_name_and_number(folder, swaps):
    data = pipeline(folder, classes="classes.txt", flip_swaps=swaps, flip=1.0)
    assert data.flip_map == {0: 1, 1: 0} and data.class_names == ("left", "right", "stay")
    (batch,) = take(data.train_batches(batch_size=20, seed=0), 1)
    good = batch["mask"] > 0
    np.testing.assert_array_equal(batch["label"][good], np.array([1, 0, 2])[batch["id"][good] % 3])


@pytest.mark.parametrize(
    "field, value",
    [
        ("source", "wmv"),
        ("name", "ucf101"),
        ("sampling", "sparse"),
        ("num_classes", 0),
        ("frames", 0),
        ("size", 24.0),
        ("short_side", 24),
        ("short_side", (32, 24)),
        ("short_side", (16, 32)),
        ("test_short_side", 16),
        ("flip", 1.5),
        ("hue", -0.1),
        ("workers", -1),
        ("prefetch", 0),
        ("max_bad_fraction", 2),
        ("flip_swaps", ("left", "right")),
        ("split", 0),
        ("missing", "ignore"),
        ("repeats", 0),
        ("frame_rate", 0.0),
        ("limit_seconds", -1.0),
        ("crop", "random"),
        ("area", (0.5,)),
        ("randaugment", -1),
        ("erasing", 2.0),
    ],
)
def test_fields_are_checked_at_construction(folder, field, value):
    with pytest.raises(DataError, match=rf"data\.{field} "):
        pipeline(folder, **{field: value})


def test_dense_fields_are_checked_at_construction(folder):
    with pytest.raises(DataError, match=r"data\.stride"):
        pipeline(folder, sampling="dense", stride=0)


@pytest.mark.parametrize(
    "swaps, part", [((("left", "up"),), "'up'"), (((0, 3),), "3"), (((0, 0),), "twice"), (((0, 1), (1, 2)), "twice")]
)
def test_flip_swaps_are_checked(folder, swaps, part):
    with pytest.raises(DataError, match=rf"data\.flip_swaps.*{part}"):
        pipeline(folder, classes="classes.txt", flip_swaps=swaps).flip_map


def test_arguments_are_refused_before_workers_start(folder):
    data = pipeline(folder, workers=2)
    with pytest.raises(DataError, match="3 processes"):
        data.train_batches(batch_size=4, seed=0, process_count=3)
    with pytest.raises(DataError, match=r"eval\.crops"):
        data.val_batches(batch_size=4, clips=1, crops=2)
    with pytest.raises(DataError, match=r"eval\.clips"):
        data.val_batches(batch_size=4, clips=0, crops=1)
    with pytest.raises(DataError, match="train.csv"):
        pipeline(folder, num_classes=5).train_batches(batch_size=4, seed=0)


def test_the_end_of_a_worker_is_told(folder):
    batches = pipeline(folder, workers=1, prefetch=1).train_batches(batch_size=4, seed=0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(DataError, match="decoding process has ended"):
        for _ in range(20):  # some are ready
            next(batches)
    batches.close()


def test_lists_and_classes_are_found_under_the_names_of_the_source(folder, tmp_path):
    for split, numbers in (("train", (0, 1, 2, 4)), ("val", (5, 6))):
        for number in numbers:
            place = tmp_path / split / ("even" if number % 2 == 0 else "odd")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.mp4").symlink_to(f"{folder}/{number}.mp4")
    data = pipeline(str(tmp_path), source="folders", num_classes=2)
    assert data.class_names == ("even", "odd")
    (batch,) = take(data.val_batches(batch_size=2, clips=1, crops=1), 1)
    assert batch["label"].tolist() == [0, 1] and batch["mask"].all()
    (batch,) = take(data.train_batches(batch_size=4, seed=0), 1)
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 1]


def test_a_list_without_labels_is_not_evaluated(folder):
    with pytest.raises(DataError, match="no labels"):
        pipeline(folder).val_batches(batch_size=2, clips=1, crops=1, records=[Record(0, f"{folder}/4.mp4", -1, 1)])


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_is_final(folder, workers):
    batches = pipeline(folder, workers=workers).train_batches(batch_size=4, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, os, sys
from input_pipeline import Pipeline

if __name__ == '__main__':
    data = Pipeline(root=sys.argv[1], num_classes=3, frames=4, size=24, short_side=(24, 32), workers=2)
    batches = data.train_batches(batch_size=4, seed=0)
    batch = next(batches)
    assert os.environ.get('JAX_PLATFORMS') == sys.argv[2]
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    kept = [next(batches) for _ in range(20)]
    print(kept[-1]['id'].tolist(), flush=True)
"""


@pytest.fixture
def parent(folder, tmp_path):
    """A running program with two workers, in a process group of its own, and the workers' ids."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "parent"}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), folder, "parent"],
        text=True,
        env=environment,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(process.workers) == 2 and all(map(alive, process.workers)), process.stderr.read()
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_all_end(pids, seconds=5):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.1)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
def test_no_worker_outlives_a_killed_parent(parent):
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    assert_all_end(parent.workers)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
def test_workers_ignore_signals_and_end_cleanly_with_the_program(parent):
    for pid in parent.workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    output, errors = parent.communicate("go on\n", timeout=30)
    assert parent.returncode == 0 and output.startswith("["), errors
    assert "leaked" not in errors and "Traceback" not in errors, errors
    assert_all_end(parent.workers)

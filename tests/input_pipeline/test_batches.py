"""A batch depends on the seed and on its number alone."""

import zlib

import numpy as np
import pytest
from clips import BAD, CLIPS, assert_equal_batches, join_processes, pipeline, take

from input_pipeline import DataError
from input_pipeline.augment import test_crops as crops_of
from input_pipeline.decode import Video
from input_pipeline.frame_rules import RandomStarts, SlowFast
from input_pipeline.sampling import Uniform


@pytest.mark.quick
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


def test_epochs_draw_new_augmentations(reference):
    rows = {}
    for batch in reference:
        for i, video in zip(batch["id"], batch["video"], strict=True):
            rows.setdefault(i, []).append(video)
    assert all((first != second).any() for i, (first, second, *_) in rows.items() if i not in BAD)


@pytest.mark.quick
def test_seeds_differ(clip_folder, reference):
    other = take(pipeline(clip_folder).train_batches(batch_size=4, seed=6), 2)
    assert any((a["id"] != b["id"]).any() for a, b in zip(other, reference, strict=True))


def test_batches_of_one_video_are_the_rows_of_larger_batches(clip_folder, reference):
    ones = take(pipeline(clip_folder).train_batches(batch_size=1, seed=5), 8)
    assert_equal_batches(
        ones,
        [{key: value[row : row + 1] for key, value in batch.items()} for batch in reference[:2] for row in range(4)],
    )


def test_batches_do_not_depend_on_the_number_of_processes(clip_folder, reference):
    local_batches = [
        take(pipeline(clip_folder).train_batches(batch_size=4, seed=5, process_index=p, process_count=2), 12)
        for p in range(2)
    ]
    assert local_batches[0][0]["video"].shape[0] == 2
    assert_equal_batches(join_processes(local_batches), reference)


@pytest.mark.parametrize("start", [1, 7])
def test_start_equals_skipping(clip_folder, reference, start):
    assert_equal_batches(
        take(pipeline(clip_folder).train_batches(batch_size=4, seed=5, start=start), 12 - start), reference[start:]
    )
    local_batches = [
        take(
            pipeline(clip_folder).train_batches(batch_size=4, seed=5, start=start, process_index=p, process_count=4),
            12 - start,
        )
        for p in range(4)
    ]
    assert_equal_batches(join_processes(local_batches), reference[start:])


@pytest.mark.parametrize("repeats", [2, 4])
def test_repeats_are_clips_of_the_same_frames(clip_folder, repeats):
    data = pipeline(clip_folder, repeats=repeats)
    batches = take(data.train_batches(batch_size=8, seed=5), 12)
    for batch in batches:
        ids, index, decoded, clips = (
            batch[key].reshape(-1, repeats, *batch[key].shape[1:]) for key in ("id", "index", "decoded", "video")
        )
        assert (ids == ids[:, :1]).all() and (index == index[:, :1]).all()
        good = batch["mask"].reshape(-1, repeats)[:, 0] > 0
        assert (decoded[good, 0] >= 4).all() and not decoded[:, 1:].any(), "the frames are decoded once"
        assert all((clip[0] != clip[1]).any() for clip in clips[good])
    videos = np.concatenate([batch["id"][::repeats] for batch in batches])
    assert sorted(videos[:CLIPS]) == list(range(CLIPS)), "a pass takes `repeats` times as many batches"
    local_batches = [
        take(data.train_batches(batch_size=8, seed=5, process_index=p, process_count=2), 12) for p in range(2)
    ]
    assert_equal_batches(join_processes(local_batches), batches)


def test_a_batch_must_hold_all_repeats_of_a_video(clip_folder):
    with pytest.raises(DataError, match=r"9 clips.*data\.repeats=2"):
        pipeline(clip_folder, repeats=2).train_batches(batch_size=9, seed=0)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 32])
@pytest.mark.parametrize("process_count", [1, 2])
def test_validation_counts_every_video_once(clip_folder, batch_size, process_count):
    batch_size *= process_count
    local_batches = [
        take(
            pipeline(clip_folder).val_batches(
                batch_size=batch_size, clips=2, crops=3, process_index=p, process_count=process_count
            ),
            99,
        )
        for p in range(process_count)
    ]
    steps = -(-11 // batch_size)
    assert [len(batches) for batches in local_batches] == [steps] * process_count
    batches = join_processes(local_batches)
    ids, mask, label, error, video = (
        np.concatenate([b[key] for b in batches]) for key in ("id", "mask", "label", "error", "video")
    )
    assert video.shape == (steps * batch_size, 6, 4, 24, 24, 3)
    assert ids.tolist() == list(range(11)) + [-1] * (len(ids) - 11)
    np.testing.assert_array_equal(mask, (ids >= 0) & ~np.isin(ids, BAD))
    np.testing.assert_array_equal(label, np.where(ids >= 0, ids % 3, 0))
    np.testing.assert_array_equal(error != b"", np.isin(ids, BAD))
    assert (video[mask == 0] == 0).all()


def test_the_index_is_that_of_each_frame_in_its_video(clip_folder):
    data = pipeline(clip_folder)
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


def test_views_follow_the_rule_of_the_config(clip_folder):
    drawn = pipeline(clip_folder, sampling="random_starts", stride=1, workers=0)
    whole = pipeline(clip_folder, sampling="slowfast", fps=7.0, workers=0)
    records = [record for record in drawn.val_manifest.records if record.id not in BAD][:3]
    one = take(drawn.val_batches(batch_size=3, clips=3, crops=1, records=records), 1)[0]
    other = take(drawn.val_batches(batch_size=3, clips=3, crops=1, records=records[::-1]), 1)[0]
    long = take(whole.val_batches(batch_size=3, clips=1, crops=1, frames=9, records=records), 1)[0]
    for i, record in enumerate(records):
        video, seed = Video(record.path), zlib.crc32(record.path.rpartition("/")[2].removesuffix(".mp4").encode())
        expected = RandomStarts(4, 1).test(video.times, video.duration, 3, seed)
        np.testing.assert_array_equal(one["index"][i], expected)
        np.testing.assert_array_equal(other["index"][2 - i], expected)
        expected = SlowFast(9, 1, 7.0, "spread", whole_video=True).test(video.times, video.duration, 1)
        np.testing.assert_array_equal(long["index"][i], expected)


def test_validation_views_are_clip_major(clip_folder):
    options = dict(batch_size=11, crops=3)
    all_views = take(pipeline(clip_folder).val_batches(clips=2, **options), 1)[0]["video"]
    centre = take(pipeline(clip_folder).val_batches(clips=2, batch_size=11, crops=1), 1)[0]["video"]
    np.testing.assert_array_equal(all_views[:, [1, 4]], centre)
    assert (all_views[0, 0] != all_views[0, 3]).any()

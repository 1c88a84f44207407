"""Several labels a clip, from the list to the batch."""

import numpy as np
import pytest
from clips import BAD, assert_equal_batches, join_processes, pipeline, take

from input_pipeline import DataError, shard_plan, transcode
from input_pipeline.annotations import read_manifest

LIST = "path,label\na.mp4,hop;skip\nb.mp4,\nc.mp4, turn ; hop \nd.mp4,skip\n"
NAMES = ("hop", "skip", "turn")


def read(folder, text, num_classes=3, labels="many", complete=True, **fields):
    for name in "abcd":
        (folder / f"{name}.mp4").touch()
    (folder / "list.csv").write_text(text)
    fields = dict(root=str(folder), num_classes=num_classes, labels=labels, complete=complete, **fields)
    return read_manifest("list.csv", **fields)


@pytest.mark.quick
def test_labels_are_joined_by_semicolons(tmp_path):
    manifest = read(tmp_path, LIST)
    assert manifest.classes == NAMES, "the names that the list has, sorted"
    assert [record.labels for record in manifest.records] == [(0, 1), (), (0, 2), (1,)]
    assert all(record.label == -1 and record.has_label for record in manifest.records)
    assert [record.class_numbers for record in manifest.records] == [(0, 1), (), (0, 2), (1,)]
    numbers = read(tmp_path, "a.mp4,0;1\nb.mp4,\nc.mp4,2;0\nd.mp4,1\n")
    assert numbers.classes is None and numbers.digest == manifest.digest
    assert [record.labels for record in numbers.records] == [record.labels for record in manifest.records]


@pytest.mark.quick
def test_a_class_file_decides_the_order_and_may_have_classes_without_a_video(tmp_path):
    (tmp_path / "classes.txt").write_text("turn\nskip\nhop\nfly\n")
    manifest = read(tmp_path, LIST, num_classes=4, classes="classes.txt")
    assert [record.labels for record in manifest.records] == [(1, 2), (), (0, 2), (1,)]


@pytest.mark.quick
def test_a_list_of_one_label_a_clip_is_one_of_several(tmp_path):
    text = "a.mp4,0\nb.mp4,2\nc.mp4,1\nd.mp4,1\n"
    assert [record.labels for record in read(tmp_path, text).records] == [(0,), (2,), (1,), (1,)]
    one = read(tmp_path, text, labels="one")
    assert [record.labels for record in one.records] == [None] * 4
    assert [record.class_numbers for record in one.records] == [(0,), (2,), (1,), (1,)]


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, fields, expected",
    [
        ("a.mp4,0;0\n", {}, "line 1: the label '0' is given twice"),
        ("a.mp4,hop;skip;hop\n", dict(num_classes=2), "line 1: the label 'hop' is given twice"),
        ("a.mp4,0\nb.mp4,0;\n", {}, "line 2: a semicolon in '0;'"),
        ("a.mp4,0;3\n", {}, "line 1: label 3 is out of range"),
        (LIST, dict(num_classes=4), "have 3 classes, but data.num_classes is 4"),
        (LIST, dict(labels="one"), "line 2: the label 'hop;skip' is not .*Several labels need data.labels=many"),
        ("a.mp4,0\nb.mp4,0;1\n", {}, "largest label is 1.*data.num_classes=2"),
        ("a.mp4,\nb.mp4,\n", {}, "none of its videos has a label"),
        ("a.mp4,up\n", dict(classes="classes.txt"), "'up' is not a name of data.classes"),
        ("a.mp4,up\n", dict(classes="joined.txt"), "'up;down' holds a semicolon"),
    ],
)
def test_mistakes_are_named(tmp_path, text, fields, expected):
    (tmp_path / "classes.txt").write_text("hop\nskip\nturn\n")
    (tmp_path / "joined.txt").write_text("up;down\nup\ndown\n")
    with pytest.raises(DataError, match=expected) as error:
        read(tmp_path, text, **fields)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.quick
def test_sources_of_one_label_a_video_are_refused(tmp_path):
    with pytest.raises(DataError, match="data.source='folders' gives one label a video. Set data.source=csv"):
        read_manifest("train", source="folders", root=str(tmp_path), num_classes=2, labels="many")


LABELS = [(0, 1), (), (1, 2), (2,)]  # of video i: entry i % 4


@pytest.fixture(scope="module")
def many_folder(tmp_path_factory, clip_folder):
    """The videos of `clip_folder` with several labels."""
    folder, rows = tmp_path_factory.mktemp("many"), []
    for i in range(22):
        (folder / f"{i}.mp4").symlink_to(f"{clip_folder}/{i}.mp4")
        rows.append(f"{i}.mp4,{';'.join(map(str, LABELS[i % 4]))}\n")
    (folder / "train.csv").write_text("".join(rows))
    (folder / "val.csv").write_text("".join(rows[:11]))
    return str(folder)


def multi_hot(ids):
    target = np.zeros((len(ids), 3), np.float32)
    for row, i in zip(target, ids, strict=True):
        row[list(LABELS[i % 4] if i >= 0 else ())] = 1
    return target


@pytest.mark.quick
def test_batches_hold_the_labels_as_zeros_and_ones(many_folder, clip_folder):
    data = pipeline(many_folder, labels="many")
    assert data.multi_hot == 3 and pipeline(clip_folder).multi_hot is None
    train = take(data.train_batches(batch_size=4, seed=5), 6)
    val = take(data.val_batches(batch_size=4, clips=1, crops=1), 3)
    for batch in (*train, *val):
        assert batch["label"].dtype == np.float32
        np.testing.assert_array_equal(batch["label"], multi_hot(batch["id"]))
    assert val[-1]["id"][-1] == -1 and not val[-1]["label"][-1].any(), "padding"
    one = take(pipeline(clip_folder).train_batches(batch_size=4, seed=5), 6)
    for batch, same in zip(train, one, strict=True):
        for field in ("video", "index", "mask", "id"):
            np.testing.assert_array_equal(batch[field], same[field])


@pytest.mark.quick
def test_a_flip_swaps_each_of_the_labels(many_folder):
    data = pipeline(many_folder, labels="many", flip=1.0, flip_swaps=((0, 2),))
    (batch,) = take(data.train_batches(batch_size=20, seed=0), 1)
    good = batch["mask"] > 0  # a video that cannot be decoded is not flipped
    assert good.any() and not good.all()
    np.testing.assert_array_equal(batch["label"][good], multi_hot(batch["id"])[good][:, [2, 1, 0]])


def test_balanced_batches_depend_on_the_seed_and_their_number_alone(many_folder):
    """For any start, number of processes and number of workers."""
    data = pipeline(many_folder, labels="many", balance=1.0)
    expected = take(data.train_batches(batch_size=4, seed=5), 8)
    assert [batch["id"].tolist() for batch in expected] != [
        batch["id"].tolist()
        for batch in take(pipeline(many_folder, labels="many").train_batches(batch_size=4, seed=5), 8)
    ]
    local = [
        take(data.train_batches(batch_size=4, seed=5, start=3, process_index=p, process_count=4), 5) for p in range(4)
    ]
    assert_equal_batches(join_processes(local), expected[3:])
    with_workers = pipeline(many_folder, labels="many", balance=1.0, workers=2)
    assert_equal_batches(take(with_workers.train_batches(batch_size=4, seed=5, start=5), 3), expected[5:])


def test_a_prepared_set_keeps_several_labels(many_folder, tmp_path):
    fields = dict(root=many_folder, num_classes=3, frames=4, size=24)
    plan = shard_plan.make_plan(fields | dict(labels="many"), {}, clips_per_shard=30)
    for job in plan.jobs:
        shard_plan.run_job(tmp_path, job, map(transcode.run, job.tasks))
    shard_plan.merge(tmp_path, plan)
    prepared = pipeline(str(tmp_path), source="shards", labels="many")
    for manifest, source in (
        (prepared.train_manifest, pipeline(many_folder, labels="many").train_manifest),
        (prepared.val_manifest, pipeline(many_folder, labels="many").val_manifest),
    ):
        expected = {record.name: record.labels for record in source.records if record.id not in BAD}
        assert {record.name: record.labels for record in manifest.records} == expected
    with pytest.raises(DataError, match=r"train\.json line 2: the clip has several labels\. Set data\.labels=many"):
        pipeline(str(tmp_path), source="shards").train_manifest

"""The fields of the data section: what they mean, and which values are refused before anything is decoded."""

import numpy as np
import pytest
from clips import pipeline, take

from input_pipeline import DataError, Record


@pytest.mark.quick
@pytest.mark.parametrize("swaps", [(("left", "right"),), ((0, 1),), [["right", 0]]])
def test_flip_swaps_by_name_and_number(clip_folder, swaps):
    data = pipeline(clip_folder, classes="classes.txt", flip_swaps=swaps, flip=1.0)
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
        ("balance", 1.5),
        ("labels", "several"),
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
def test_fields_are_checked_at_construction(clip_folder, field, value):
    with pytest.raises(DataError, match=rf"data\.{field} "):
        pipeline(clip_folder, **{field: value})


def test_dense_fields_are_checked_at_construction(clip_folder):
    with pytest.raises(DataError, match=r"data\.stride"):
        pipeline(clip_folder, sampling="dense", stride=0)


@pytest.mark.parametrize(
    "swaps, words", [((("left", "up"),), "'up'"), (((0, 3),), "3"), (((0, 0),), "twice"), (((0, 1), (1, 2)), "twice")]
)
def test_flip_swaps_are_checked(clip_folder, swaps, words):
    with pytest.raises(DataError, match=rf"data\.flip_swaps.*{words}"):
        pipeline(clip_folder, classes="classes.txt", flip_swaps=swaps).flip_map


def test_arguments_are_refused_before_workers_start(clip_folder):
    data = pipeline(clip_folder, workers=2)
    with pytest.raises(DataError, match="3 processes"):
        data.train_batches(batch_size=4, seed=0, process_count=3)
    with pytest.raises(DataError, match=r"eval\.crops"):
        data.val_batches(batch_size=4, clips=1, crops=2)
    with pytest.raises(DataError, match=r"eval\.clips"):
        data.val_batches(batch_size=4, clips=0, crops=1)
    with pytest.raises(DataError, match="train.csv"):
        pipeline(clip_folder, num_classes=5).train_batches(batch_size=4, seed=0)


def test_lists_and_classes_are_found_under_the_names_of_the_source(clip_folder, tmp_path):
    for split, numbers in (("train", (0, 1, 2, 4)), ("val", (5, 6))):
        for number in numbers:
            class_folder = tmp_path / split / ("even" if number % 2 == 0 else "odd")
            class_folder.mkdir(parents=True, exist_ok=True)
            (class_folder / f"{number}.mp4").symlink_to(f"{clip_folder}/{number}.mp4")
    data = pipeline(str(tmp_path), source="folders", num_classes=2)
    assert data.class_names == ("even", "odd")
    (batch,) = take(data.val_batches(batch_size=2, clips=1, crops=1), 1)
    assert batch["label"].tolist() == [0, 1] and batch["mask"].all()
    (batch,) = take(data.train_batches(batch_size=4, seed=0), 1)
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 1]


def test_a_list_without_labels_is_not_evaluated(clip_folder):
    with pytest.raises(DataError, match="have no label"):
        pipeline(clip_folder).val_batches(
            batch_size=2, clips=1, crops=1, records=[Record(0, f"{clip_folder}/4.mp4", -1, 1)]
        )


@pytest.mark.quick
def test_a_batch_of_one_video(clip_folder):
    data = pipeline(clip_folder)
    ones, twos = (take(data.train_batches(batch_size=size, seed=0), 4 // size) for size in (1, 2))
    assert [batch["id"].tolist() for batch in ones] == [[number] for batch in twos for number in batch["id"]]

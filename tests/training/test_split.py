"""A validation part that was drawn stays with its run, whatever becomes of the data and of the folder of the run."""

import dataclasses
import json
import shutil

import pytest

from input_pipeline import DataError, Pipeline
from vidformers import ConfigError
from vidformers.training.split import lists_to_evaluate, split_entry, stored_lists, write_split


def data_of(root, **fields):
    lists = dict(train=None, val=None, test=None, classes=None, name=None, split=1)
    return dict(source="auto", root=str(root), num_classes=2, frames=4, size=16) | lists | fields


def pipeline(root, lists=None, **fields):
    return dataclasses.replace(Pipeline(**data_of(root, **fields)), **lists or {})


@pytest.fixture
def run(tmp_path):
    """Returns the folder of the data, the folder of a run on them, and its pipeline."""
    for label in ("1", "hop, [left]"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "data" / label / f"{number}.mp4").write_bytes(b"x")
    data, workdir = pipeline(tmp_path / "data"), tmp_path / "run"
    workdir.mkdir()
    write_split(workdir, data)
    facts = split_entry(data, {}) | {"classes": list(data.class_names)}
    (workdir / "run.json").write_text(
        json.dumps({"config": {"model": {}, "data": data_of(tmp_path / "data")}, "data": facts})
    )
    return tmp_path / "data", workdir, data


def digests(data):
    return [data.manifest(part).digest for part in ("train", "val")]


@pytest.mark.quick
def test_new_videos_another_seed_and_another_folder_move_no_video(run, tmp_path):
    root, workdir, data = run
    for number in range(20):
        (root / "1" / f"new {number}.mp4").write_bytes(b"x")
    assert digests(pipeline(root)) != digests(data)
    moved = workdir.rename(tmp_path / "moved")
    lists = stored_lists(moved, data_of(root))
    continued = pipeline(root, lists, val_seed=7)
    assert digests(continued) == digests(data)
    assert continued.class_names == data.class_names == ("1", "hop, [left]")
    assert split_entry(continued, lists) == split_entry(data, {})
    before = (moved / "split" / "val.csv").read_bytes()
    write_split(moved, continued)
    assert (moved / "split" / "val.csv").read_bytes() == before


@pytest.mark.quick
def test_a_list_that_is_given_takes_the_place_of_the_drawn_part(run):
    root, workdir, data = run
    (root / "mine.csv").write_text('"hop, [left]/5.mp4","hop, [left]"\n')
    lists = stored_lists(workdir, data_of(root, val="mine.csv"))
    other = pipeline(root, lists, val="mine.csv")
    assert [record.name for record in other.manifest("val").records] == ["hop, [left]/5.mp4"]
    assert other.manifest("train").digest == data.manifest("train").digest


@pytest.mark.quick
def test_a_run_with_a_validation_part_of_its_own_has_no_lists(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "1.mp4").write_bytes(b"x")
    data = pipeline(tmp_path, num_classes=1)
    assert split_entry(data, {}) == {}
    write_split(tmp_path, data)
    assert not (tmp_path / "split").exists() and stored_lists(tmp_path, data_of(tmp_path)) == {}


def evaluated(run, root, part="val", **fields):
    """Returns the names of the videos of the part that the run evaluates, with their class names, and sentences."""
    lists, sentences = lists_to_evaluate(run[1], data_of(root, **fields), part)
    data = pipeline(root, lists, **fields)
    return {record.name: data.class_names[record.label] for record in data.manifest(part).records}, sentences


@pytest.mark.quick
def test_the_drawn_part_is_evaluated_and_the_others_where_they_are_asked_for(run, tmp_path):
    root, _, data = run
    shutil.copytree(root, tmp_path / "copy")
    for folder in (root, tmp_path / "copy"):
        for part in ("train", "val"):
            videos, sentences = evaluated(run, folder, part)
            assert [*videos] == [record.name for record in data.manifest(part).records] and not sentences
    (root / "test" / "hop, [left]").mkdir(parents=True)
    (root / "test" / "hop, [left]" / "t.mp4").write_bytes(b"x")
    (root / "train").mkdir()
    for label in data.class_names:
        (root / label).rename(root / "train" / label)
    assert evaluated(run, root, "test")[0] == {"hop, [left]/t.mp4": "hop, [left]"}


@pytest.mark.quick
def test_classes_of_other_data_are_matched_by_name(run, tmp_path):
    """All of their videos are evaluated if they have no validation part. They may lack classes of the run."""
    other = tmp_path / "other"
    (other / "hop, [left]").mkdir(parents=True)
    (other / "hop, [left]" / "a.mp4").write_bytes(b"x")
    videos, (sentence,) = evaluated(run, other)
    assert videos == {"hop, [left]/a.mp4": "hop, [left]"} and "All of its videos are evaluated" in sentence
    (other / "skip").mkdir()
    (other / "skip" / "a.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"'skip' is not one of the classes of the run, '1', 'hop, \[left\]'"):
        evaluated(run, other)
    (other / "val.csv").write_text('a.mp4,"hop, [left]"\n')
    (other / "a.mp4").write_bytes(b"x")
    assert evaluated(run, other, source="csv", val="val.csv") == ({"a.mp4": "hop, [left]"}, [])
    (other / "val.csv").write_text("a.mp4,1\n")  # the name of a class
    assert evaluated(run, other, source="csv", val="val.csv") == ({"a.mp4": "1"}, [])
    (other / "val.csv").write_text("a.mp4,0\n")
    with pytest.raises(DataError, match="'0' is not one of the classes of the run"):
        evaluated(run, other, train="val.csv", val="val.csv")
    assert evaluated(run, other, source="csv", val="val.csv") == ({"a.mp4": "1"}, [])  # whose labels are numbers


@pytest.mark.quick
def test_a_class_file_must_have_the_classes_of_the_run(run):
    root, _, data = run
    (root / "classes.txt").write_text("1\nhop, [left]\n")
    assert len(evaluated(run, root, classes="classes.txt")[0]) == 2
    (root / "classes.txt").write_text("hop, [left]\n1\n")
    with pytest.raises(ConfigError, match="data.classes=classes.txt lists other classes than the run"):
        evaluated(run, root, classes="classes.txt")

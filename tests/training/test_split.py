"""A validation part that was drawn stays with its run, whatever becomes of the data and of the folder of the run."""

import dataclasses
import json

import pytest

from input_pipeline import Pipeline
from vidformers.training.split import split_entry, stored_lists, write_split


def data_of(root, **fields):
    return dict(source="auto", root=str(root), num_classes=2, frames=4, size=16, val=None) | fields


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
    entry = split_entry(data, {})
    (workdir / "run.json").write_text(json.dumps({"config": {"model": {}, "data": {}}, "data": entry}))
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

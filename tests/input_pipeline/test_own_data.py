"""Own data: the layouts of `data.root`, classes from the data, the drawn validation part, and parts of long videos."""

import collections
import csv
import itertools
import os
import random
import re

import numpy as np
import pytest
from numbered import VFR, read_number, write

from input_pipeline import DataError, Manifest, Pipeline, Record, check, shard_plan, transcode
from input_pipeline.drawn_split import Item, draw, items, list_text, suggested_group
from input_pipeline.errors import DecodeError
from input_pipeline.files import write_text
from input_pipeline.layouts import count_classes, find_layout
from input_pipeline.parts import Parts
from input_pipeline.shards import changed_files
from input_pipeline.video_part import VideoPart
from input_pipeline.videos import open_video

ODD_CLASSES = ("falls [down]", "größe 10", "größe 9", "{left}", os.fsdecode(b"\xff\xfe"))


def own(root, **fields):
    """Returns the parts of own data, with the number of classes that the data have."""
    data = dict(
        source="auto", root=str(root), name=None, train=None, val=None, test=None, val_seed=0, group=None, split=1,
        missing="error", exclude=None, classes=None, labels="one",
    )  # fmt: skip
    data |= fields
    return Parts(**{"num_classes": count_classes(data), **data})


def make(root, *names):
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    return root


def refused(root, **fields):
    """Returns the sentence with which data are refused."""
    with pytest.raises(DataError) as error:
        parts = own(root, **fields)
        parts.manifest("train"), parts.manifest("val")
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    return str(error.value)


def names(manifest):
    return [record.name for record in manifest.records]


@pytest.mark.quick
def test_classes_have_the_natural_order_of_their_folders_at_any_name(tmp_path):
    parts = own(make(tmp_path, *(f"{name}/{i}.mp4" for name in ODD_CLASSES for i in range(3))))
    assert parts.class_names == ("falls [down]", "größe 9", "größe 10", "{left}", ODD_CLASSES[-1])
    labels = {record.name.split("/")[0]: record.label for record in parts.listed.records}
    assert labels == {name: number for number, name in enumerate(parts.class_names)}


@pytest.mark.quick
def test_lists_come_before_the_folder_train_before_class_folders(tmp_path):
    make(tmp_path, "run/1.mp4", "run/2.mp4", "hop/3.mp4")
    assert own(tmp_path).class_names == ("hop", "run") and find_layout(str(tmp_path)).remark == ""
    make(tmp_path, "train/a/4.mp4", "train/b/5.mp4", "val/a/6.mp4", "test/b/7.mp4")
    parts = own(tmp_path)
    assert parts.class_names == ("a", "b") and not parts.is_drawn
    assert [names(parts.manifest(part)) for part in ("val", "test")] == [["a/6.mp4"], ["b/7.mp4"]]
    assert parts.layout.remark == f"{tmp_path} also holds class folders. The videos are those of train."
    (tmp_path / "train.csv").write_text("path,label\nrun/1.mp4,x\nrun/2.mp4,x\nhop/3.mp4,y\n")
    parts = own(tmp_path)
    assert parts.class_names == ("x", "y") and parts.is_drawn
    for name in ("train", "val", "test", "class folders"):
        assert name in parts.layout.remark
    (tmp_path / "mine.csv").write_text("path,label\nrun/1.mp4,x\n")
    (tmp_path / "val.csv").write_text("path,label\nrun/2.mp4,x\n")
    assert names(own(tmp_path, train="mine.csv").manifest("val")) == ["run/2.mp4"]


@pytest.mark.quick
def test_a_class_may_have_the_name_of_a_part(tmp_path):
    make(tmp_path, "train/1.mp4", "train/2.mp4", "car/3.mp4", "car/4.mp4")
    assert own(tmp_path).class_names == ("car", "train")


@pytest.mark.quick
def test_a_data_set_without_a_third_part_says_so(tmp_path):
    make(tmp_path, "a/1.mp4", "a/2.mp4")
    with pytest.raises(
        DataError, match=r"has no test part .* Add test\.csv or a folder test with class folders, or set data\.test"
    ):
        own(tmp_path).manifest("test")


@pytest.mark.quick
@pytest.mark.parametrize(
    "files, expected",
    [
        (["a/1.mp4", "a/2.mp4", "b/"], "class folder .*/b holds no videos"),
        (["train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/b/"], "class folder .*/val/b holds no videos"),
        (["train/a/1.mp4", "train/b/2.mp4", "val/c/3.mp4"], "val: c/3.mp4: the label 'c' is not one of the 2 classes"),
        (["a/1.jpg", "a/2.jpg"], "/a holds pictures, such as '1.jpg', and no videos"),
        (["1.mp4", "2.mp4"], "no class folders and no train.csv"),
        (["val/a/1.mp4"], "holds val, but neither train.csv nor"),
        (["a/inner/1.mp4", "b/2.mp4"], "/a/inner is a folder in a class folder"),
        (["a /1.mp4", "a/2.mp4"], "differs from 'a' only in blanks"),
        (["a\n/1.mp4", "b/2.mp4"], "is no class name"),
        (["a/1.mp4", "b/2.mp4"], "A validation part cannot be drawn: no class has two videos"),
        (["a/1.mp4", "a/2.txt"], "2.txt is not a video by its extension"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(tmp_path, files, expected):
    make(tmp_path, *(name for name in files if not name.endswith("/")))
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
    assert re.search(expected, refused(tmp_path))


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, expected",
    [
        ("1.mp4,a\n1.mp4,a,0,1\n", "line 2: expected two columns, path,label, and found 4"),
        ("1.mp4,a,0,1\n1.mp4,a\n", "line 2: expected four columns, path,label,start,end, and found 2"),
        ("1.mp4,a,1\n", "line 1: expected two columns"),
        ("path,label,begin,end\n1.mp4,a,0,1\n", "the header is 'path,label,begin,end'"),
        ("1.mp4,a,3,2\n", "line 1: end=2 is not after start=3"),
        ("1.mp4,a,2,2\n", "end=2 is not after start=2"),
        ("1.mp4,a,,0\n", "end=0 is not after start=0"),
        ("1.mp4,a,-1,2\n", "start must be seconds from 0, such as 12.5, but is '-1'"),
        ("1.mp4,a,nan,2\n", "start must be seconds"),
        ("1.mp4,a,0,inf\n", "end must be seconds"),
        ("1.mp4,a,0:10,0:20\n", "start must be seconds"),
        ("1.mp4,0.5\n2.mp4,1.5\n", "line 1: the label '0.5' is a decimal number"),
        ("1.mp4,a\n2.mp4,3\n", "the label 'a' is a name, and '3' on line 2 is a number"),
        ("1.mp4,a;b\n2.mp4,a\n", "holds a semicolon. Set data.labels=many"),
        ("1.mp4,a,0,1\n1.mp4,a,0,1\n", "line 2: 1.mp4#t=0,1 is already on line 1"),
        ("1.mp4,\n2.mp4,a\n", "line 1: the video has no label"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path, text, expected):
    make(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text(text)
    assert expected in refused(tmp_path)


@pytest.mark.quick
def test_labels_of_a_list_are_names_or_numbers_and_a_header_orders_the_columns(tmp_path):
    make(tmp_path, *(f"{i}.mp4" for i in range(6)))
    (tmp_path / "train.csv").write_text("".join(f"{i}.mp4,clip {10 - i}\n" for i in range(6)))
    assert own(tmp_path).class_names == tuple(f"clip {i}" for i in range(5, 11))
    (tmp_path / "train.csv").write_text("".join(f"{i}.mp4,{i // 2}\n" for i in range(6)))
    parts = own(tmp_path)
    assert parts.class_names == ("0", "1", "2")
    assert [record.label for record in parts.listed.records] == [0, 0, 1, 1, 2, 2]
    (tmp_path / "train.csv").write_text("Label, start ,path,end\nx,1,0.mp4,2\nx,,0.mp4,1\ny,2,0.mp4,\ny,,1.mp4,\n")
    records = own(tmp_path).listed.records
    assert [(r.start, r.end, r.is_part) for r in records] == [
        (1, 2, True), (None, 1, True), (2, None, True), (None, None, False),
    ]  # fmt: skip
    assert names(own(tmp_path).listed) == ["0.mp4#t=1,2", "0.mp4#t=,1", "0.mp4#t=2,", "1.mp4"]


def test_data_exclude_leaves_out_one_part_or_a_whole_video(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "train.csv").write_text("a.mp4,x,0,1\na.mp4,x,1,2\nb.mp4,x,0,1\nb.mp4,x,1,2\n")
    (tmp_path / "out.txt").write_text("a.mp4#t=0,1\nb.mp4\n")
    listed = own(tmp_path, exclude=str(tmp_path / "out.txt")).listed
    assert names(listed) == ["a.mp4#t=1,2"] and listed.unmatched == ()


def clips(counts, group_size=1):
    """Returns videos of the classes of `counts`, {class: number}, whose names hold a group of `group_size`."""
    return [
        Item(name := f"{label}/match{i // group_size}_{i:03}.mp4", (label,), name)
        for label, count in counts.items()
        for i in range(count)
    ]


@pytest.mark.quick
def test_a_fifth_of_each_class_is_drawn_by_names_and_seed_alone():
    videos = clips({"a": 50, "b": 7, "c": 2, "d": 1})
    drawn = draw(videos, 0)
    counts = collections.Counter(item.classes[0] for item, is_val in zip(videos, drawn, strict=True) if is_val)
    assert counts == {"a": 10, "b": 1, "c": 1}
    chosen = {item.name for item, is_val in zip(videos, drawn, strict=True) if is_val}
    shuffled = random.Random(1).sample(videos, len(videos))
    assert {item.name for item, is_val in zip(shuffled, draw(shuffled, 0), strict=True) if is_val} == chosen
    assert draw(videos, 1) != drawn
    # A video more moves at most one other.
    more = [*videos, Item("a/new.mp4", ("a",), "a/new.mp4")]
    after = {item.name for item, is_val in zip(more, draw(more, 0), strict=True) if is_val}
    assert len(chosen - after) <= 1


@pytest.mark.quick
def test_a_fifth_of_the_videos_without_a_label_is_drawn():
    labels = [(0,)] * 20 + [()] * 10
    records = tuple(Record(i, f"/d/{i}.mp4", -1, i + 1, labels=labels[i]) for i in range(len(labels)))
    drawn = draw(items(Manifest("/d/train.csv", records, ("a",), ""), "/d"), 0)
    assert sum(drawn[:20]) == 4 and sum(drawn[20:]) == 2


@pytest.mark.quick
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_across_classes(seed):
    videos = clips({"a": 60, "b": 30, "c": 12}, group_size=3)
    drawn = draw(videos, seed, "match[0-9]+")
    part_of = collections.defaultdict(set)
    for item, is_val in zip(videos, drawn, strict=True):
        part_of[item.name.split("/")[1].split("_")[0]].add(is_val)
    assert all(len(parts) == 1 for parts in part_of.values())
    for label, total in (("a", 60), ("b", 30), ("c", 12)):
        count = sum(is_val for item, is_val in zip(videos, drawn, strict=True) if label in item.classes)
        assert 0 < count <= total / 5 + 3


@pytest.mark.quick
def test_large_groups_leave_every_class_videos_for_both_parts():
    videos = clips({"a": 20, "b": 20, "c": 20}, group_size=10)  # two groups, in all classes
    drawn = draw(videos, 0, r"(match[0-9]+)_")
    assert sum(drawn) == 30
    with pytest.raises(DataError, match="cannot be drawn"):
        draw(videos, 0, "match")
    with pytest.raises(DataError, match=r"data\.group='\(' is not a regular expression"):
        draw(videos, 0, "(")


@pytest.mark.quick
def test_parts_of_one_video_are_a_group():
    videos = [Item(f"{i}.mp4#t={j},{j + 1}", (0,), f"{i}.mp4") for i in range(5) for j in range(4)]
    drawn = draw(videos, 0, suggested_group(videos))
    assert {item.path for item, is_val in zip(videos, drawn, strict=True) if is_val}.isdisjoint(
        item.path for item, is_val in zip(videos, drawn, strict=True) if not is_val
    )


@pytest.mark.quick
def test_lists_of_a_drawn_part_read_as_they_were_drawn(tmp_path):
    data = make(tmp_path / "data", *(f"{name}/{i}, [x].mp4" for name in (*ODD_CLASSES, "1", "2") for i in range(5)))
    drawn, files = own(data), {}
    for part in ("train", "val"):
        files[part] = str(tmp_path / f"{part}.csv")
        write_text(files[part], list_text(drawn.manifest(part), drawn.root))
    files["classes"] = str(tmp_path / "classes.txt")
    write_text(files["classes"], "".join(f"{name}\n" for name in drawn.class_names))
    read = own(data, **files)
    assert read.class_names == drawn.class_names
    for part in ("train", "val"):
        assert read.manifest(part).digest == drawn.manifest(part).digest
        assert names(read.manifest(part)) == names(drawn.manifest(part))


@pytest.mark.parametrize(
    "name, options",
    [
        ("plain.mp4", {}),
        ("b_frames.mkv", {"options": {"bf": "3", "b_strategy": "0"}}),
        ("open.mp4", {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}, "gop": 10}),
        ("varying.mkv", {"pts": VFR}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_a_part_holds_the_frames_from_its_start_to_its_end(tmp_path, name, options):
    path = write(tmp_path / name, **{"gop": 12} | options)
    whole = open_video(Record(0, path, 0, 1))
    bounds = [0.0, 0.5, whole.times[20], 1.72, None]
    seen = []
    for start, end in itertools.pairwise(bounds):
        part = open_video(Record(0, path, 0, 1, start, end))
        expected = [i for i, t in enumerate(whole.times) if start - 1e-6 <= t and (end is None or t < end - 1e-6)]
        assert [read_number(frame) for frame in part.frames(range(len(part.times)))] == expected
        np.testing.assert_allclose(part.times, whole.times[expected] - whole.times[expected[0]], atol=1e-6)
        ends = [*whole.times, whole.duration]
        assert part.duration == pytest.approx(ends[expected[-1] + 1] - whole.times[expected[0]], abs=2e-3)
        assert read_number(part.frames([len(expected) // 2])[0]) == expected[len(expected) // 2]
        seen += expected
    assert seen == list(range(60))


def test_a_part_is_found_without_decoding_or_reading_what_lies_before(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", count=250, gop=10)
    read, packets = [], VideoPart._packets

    def counted(*arguments):
        for packet in packets(*arguments):
            read.append(packet.pts)
            yield packet

    monkeypatch.setattr(VideoPart, "_packets", counted)
    part = open_video(Record(0, path, 0, 1, 8.0, 9.0))
    assert [read_number(frame) for frame in part.frames(range(25))] == [i % 256 for i in range(200, 225)]
    assert part.decoded <= 25 + 10 and len(read) < 130


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize(
    "start, end, expected",
    [
        (0.0, 9.0, "lasts 2.4 s, but its part starts at 0 s and ends at 9 s"),
        (3.0, 3.2, "lasts 2.4 s, but its part starts at 3 s"),
        (3.0, None, "lasts 2.4 s, but its part starts at 3 s"),
        (1.01, 1.02, "no frame lies between 1.01 s and 1.02 s"),
    ],
)
def test_a_part_that_the_video_does_not_hold_is_refused(tmp_path, name, start, end, expected):
    path = write(tmp_path / name, codec="mpeg4")
    with pytest.raises(DecodeError, match=expected):
        open_video(Record(0, path, 0, 1, start, end))
    assert len(open_video(Record(0, path, 0, 1, 2.0, 2.5)).times) == 10  # the end is rounded


def test_parts_are_prepared_as_clips_with_a_third_part(tmp_path):
    root, out = tmp_path / "data", tmp_path / "shards"
    root.mkdir(), out.mkdir()
    write(root / "long.mp4", gop=10)
    parts = {"train": [(0, 0.4), (0.4, 1)], "val": [(1, 1.2)], "test": [(1.2, 2), (2, 2.4)]}
    for part, times in parts.items():
        rows = [f"long.mp4,{'ab'[i % 2]},{start},{end}\n" for i, (start, end) in enumerate(times)]
        (root / f"{part}.csv").write_text("path,label,start,end\n" + "".join(rows))
    data = dict(source="auto", root=str(root), num_classes=2, frames=4, size=16, workers=0)
    plan = shard_plan.make_plan(data, {"short_side": 64, "crf": 10}, 8)
    shard_plan.claim_folder(out, plan.options)
    for job in plan.jobs:
        shard_plan.run_job(out, job, map(transcode.run, job.tasks))
    summary = shard_plan.merge(out, plan)
    assert {part: summary[part]["clips"] for part in parts} == {"train": 2, "val": 1, "test": 2}
    assert changed_files(str(out)) == []
    assert count_classes(data | dict(source="shards", root=str(out), name=None, train=None, classes=None)) == 2
    shards = Pipeline(**data | dict(source="shards", root=str(out)))
    for part, times in parts.items():
        for record, (start, end) in zip(shards.manifest(part).records, times, strict=True):
            video = open_video(record)
            numbers = [read_number(frame) for frame in video.frames(range(len(video.times)))]
            assert numbers == list(range(round(25 * start), round(25 * end)))
            assert record.name == f"long.mp4#t={start},{end}"


def test_a_report_of_check_has_a_row_for_each_part_and_names_those_that_are_broken(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "long.mp4", gop=10)
    rows = "".join(f"long.mp4,a,{start},{start + 0.4:g}\n" for start in (0, 0.4, 0.8, 1.2, 9))
    (tmp_path / "data" / "train.csv").write_text("path,label,start,end\n" + rows)
    flags = ["--config=configs/vit_b16.py", "--config.data.source=auto", f"--config.data.root={tmp_path}/data"]
    assert check.main([*flags, f"--out={tmp_path}/out", "--workers=1"]) == 1
    with open(tmp_path / "out" / "report.csv", newline="") as file:
        frames = {row["path"]: row["frames"] for row in csv.DictReader(file)}
    assert frames == {f"long.mp4#t={start:g},{start + 0.4:g}": "10" for start in (0, 0.4, 0.8, 1.2)} | {
        "long.mp4#t=9,9.4": ""
    }
    assert (tmp_path / "out" / "exclude.txt").read_text() == "long.mp4#t=9,9.4\n"
    exclude = f"--config.data.exclude={tmp_path}/out/exclude.txt"
    assert check.main([*flags, exclude, f"--out={tmp_path}/again", "--workers=1"]) == 0
    assert "All 4 videos can be decoded" in capsys.readouterr().out

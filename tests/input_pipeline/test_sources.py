"""Every source reads a small tree in the layout that its authors publish, with real videos, and names every mistake."""

import json
import os
from pathlib import Path

import pytest
from trees import read, refusal, summary, under

from input_pipeline import DataError, sources
from input_pipeline.annotations import class_names, read_manifest
from input_pipeline.sources import SOURCES, csv, register
from input_pipeline.sources.something import mirrored, sided

NO_SOURCES = {"__init__", "registry", "listing", "files"}  # the modules of the package that are not a source


@pytest.mark.quick
def test_lists_split_at_the_last_separator(tree):
    root = tree(
        {"train.txt": "a.mp4 0\r\nwith space, and comma.mp4 1\n\r\nb c.mp4,1\r\nsub/d.mp4\t0 \n"},
        ["a.mp4", "with space, and comma.mp4", "b c.mp4", "sub/d.mp4"],
    )
    manifest = read("lists", root, "TRAIN", num_classes=2)
    assert summary(manifest) == under(
        root, ("a.mp4", 0), ("with space, and comma.mp4", 1), ("b c.mp4", 1), ("sub/d.mp4", 0)
    )
    assert [record.line for record in manifest.records] == [1, 2, 4, 5]


def test_lists_with_names_and_absolute_paths(tree):
    root = tree({"names.txt": "hop\r\nskip\r\n"}, ["a.mp4"])
    tree({"val.txt": f"{root}/a.mp4 skip\n"})
    assert summary(read("lists", root, num_classes=2, classes="names.txt")) == under(root, ("a.mp4", "skip"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.mp4 0\na.mp4\n", ["line 2", "path and a label", "'a.mp4'"]),
        ("a.mp4 0\nclip_7 120 1\n", ["line 2", "third column", "'clip_7 120 1'", "data.source='frames'"]),
        ("a.mp4 0 1\n", ["line 1", "third column"]),
        ("a.mp4,0,1\n", ["line 1", "third column"]),
        ("a.mp4 2\n", ["line 1", "label 2", "data.num_classes=2"]),
        ("a.mp4 hop\n", ["line 1", "'hop'"]),
        ("a.mp4 0\na.mp4 1\n", ["line 2", "line 1"]),
        ("b.mp4 0\n", ["line 1", "b.mp4 does not exist"]),
        ("", ["no videos"]),
    ],
)
def test_mistakes_in_lists(tree, text, expected):
    root = tree({"val.txt": text}, ["a.mp4"])
    assert all(words in refusal("lists", root) for words in expected)


def test_a_folder_name_that_ends_in_a_number_is_not_a_frame_count(tree):
    root = tree({"val.txt": "person 12 1\n"}, ["person 12"])
    assert summary(read("frames", root, num_classes=2)) == under(root, ("person 12", 1))


@pytest.mark.parametrize(
    "name, text", [("val.csv", "path,label\nvideo/7,1\nvideo/8/,0\n"), ("val.txt", "video/7 1\nvideo/8/ 0\n")]
)
def test_folders_of_frames(tree, name, text):
    root = tree({name: text}, ["video/7", "video/8"])
    assert summary(read("frames", root, num_classes=2)) == under(root, ("video/7", 1), ("video/8/", 0))


def test_class_folders(tree):
    root = tree({}, ["train/skip/b.mp4", "train/hop/a.mp4", "train/hop/c d.AVI", "val/skip/e.webm", "train/turn/f"])
    names = ("hop", "skip", "turn")
    manifest = read("folders", root, "TRAIN", num_classes=3)
    assert manifest.classes == names
    assert summary(manifest) == under(
        root,
        ("train/hop/a.mp4", "hop"),
        ("train/hop/c d.AVI", "hop"),
        ("train/skip/b.mp4", "skip"),
        ("train/turn/f", "turn"),
    )
    assert summary(read("folders", root, num_classes=3)) == under(root, ("val/skip/e.webm", "skip"))
    manifest = read("folders", root, path="train/skip/..", num_classes=3)
    assert summary(manifest)[-1] == (f"{root}/train/skip/../turn/f", "turn")


def test_linked_class_folders(tree):
    root = tree({}, ["elsewhere/a.mp4", "train/skip/b.mp4"])
    os.symlink(f"{root}/elsewhere", f"{root}/train/hop")
    os.symlink(f"{root}/train", f"{root}/elsewhere/loop")  # taken for a video that is a folder of frames
    assert [record.name for record in read("folders", root, "TRAIN", num_classes=2).records][:2] == [
        "hop/a.mp4",
        "hop/loop",
    ]
    os.symlink(f"{root}/nowhere", f"{root}/train/turn")
    assert f"train/turn is a link to {root}/nowhere, which does not exist" in refusal("folders", root, "TRAIN")


def test_folder_names_that_are_numbers_are_class_names(tree):
    root = tree({}, ["train/0/a.mp4", "train/1/b.mp4", "train/10/c.mp4", "val/10/d.mp4"])
    assert [record.label for record in read("folders", root, num_classes=3).records] == [2]
    tree({}, ["val/2/e.mp4"])
    assert "val: 2/e.mp4: the label '2' is not one of the 3 classes" in refusal("folders", root, num_classes=3)


def test_mistakes_in_folders(tree):
    root = tree({}, ["train/hop/a.mp4", "train/skip/a.mp4"])
    assert "There is no" in refusal("folders", root) and f"{root}/val" in refusal("folders", root)
    assert f"{root}/other cannot be read" in refusal("folders", root, path="other")
    assert "have 2 classes, but data.num_classes is 3" in refusal("folders", root, "TRAIN", num_classes=3)
    tree({"train/hop/notes.txt": ""})
    assert "notes.txt is not a video" in refusal("folders", root, "TRAIN")
    os.remove(f"{root}/train/hop/notes.txt")
    tree({}, ["train/b.mp4"])
    assert "train/b.mp4 is not in a class folder" in refusal("folders", root, "TRAIN")


LABELS = {
    "Pushing something from left to right": "1",
    "Pushing something from right to left": "0",
    "Holding something next to something": "2",
}
ITEMS = [
    {
        "id": "78687",
        "label": "holding potato next to vicks bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks bottle"],
    },
    {
        "id": "42",
        "label": "pushing a pen from left to right",
        "template": "Pushing [something] from left to right",
        "placeholders": ["a pen"],
    },
]
NAMES = (
    "Pushing something from right to left",
    "Pushing something from left to right",
    "Holding something next to something",
)


@pytest.mark.parametrize(
    "name", ["something-something-v2-{}.json", "{}.json", "labels/{}.json", "labels/something-something-v2-{}.json"]
)
@pytest.mark.parametrize("video", ["20bn-something-something-v2/{}.webm", "{}.webm", "a/frames/{}"])
def test_something(tree, name, video):
    root = tree(
        {
            name.format(part): json.dumps(content)
            for part, content in (
                ("labels", LABELS),
                ("train", ITEMS),
                ("validation", ITEMS[:1]),
                ("test", [{"id": "7"}]),
            )
        },
        [video.format(number) for number in ("78687", "42", "7")],
    )
    manifest = read("something", root, "TRAIN", num_classes=3)
    assert manifest.classes == NAMES
    assert summary(manifest) == under(root, (video.format("78687"), NAMES[2]), (video.format("42"), NAMES[1]))
    assert [record.label for record in manifest.records] == [2, 1]
    assert summary(read("something", root, num_classes=3)) == under(root, (video.format("78687"), NAMES[2]))
    test = read("something", root, path=name.format("test"), num_classes=3)
    assert [(record.path, record.label) for record in test.records] == under(root, (video.format("7"), -1))


@pytest.mark.parametrize(
    "texts, expected",
    [
        ({"train.json": "[", "labels.json": "{}"}, ["train.json is not JSON", "in line 1"]),
        ({"train.json": "{}"}, ["train.json", "list", "object"]),
        ({"train.json": '[{"id": "42"}, {"id": 7}]'}, ["item 2", "no id"]),
        ({"train.json": '[{"id": "42", "template": ["a"]}]'}, ["the template of item 1 is no text: ['a']"]),
        ({"train.json": '[{"id": "42", "template": 3}]'}, ["the template of item 1 is no text: 3"]),
        ({"train.json": json.dumps(ITEMS[1:]), "labels.json": '{"a": 1e999, "b": 0}'}, ["labels.json", "0, 1, 2"]),
        ({"train.json": '[{"id": "42"}]', "labels.json": json.dumps(LABELS)}, ["train.json: 42", "must give a label"]),
        ({"train.json": json.dumps(ITEMS[1:])}, ["labels.json", "was not found"]),
        ({"train.json": json.dumps(ITEMS[1:]), "labels.json": '{"a": "0", "b": "two"}'}, ["labels.json", "0, 1, 2"]),
        ({"train.json": json.dumps(ITEMS[1:]), "labels.json": '{"a": "1", "b": "2"}'}, ["labels.json", "0, 1, 2"]),
        (
            {"train.json": json.dumps(ITEMS[1:]), "labels.json": '{"a": "0"}'},
            ["have 1 classes", "data.num_classes is 3"],
        ),
        (
            {"train.json": json.dumps(ITEMS[1:]), "labels.json": '{"a": "0", "b": "1", "c": "2"}'},
            ["train.json: 42", "'Pushing something from left to right'", "3 classes"],
        ),
        (
            {"train.json": json.dumps(ITEMS[1:] * 2), "labels.json": json.dumps(LABELS)},
            ["42: this video is listed twice"],
        ),
        ({"train.json": json.dumps(ITEMS), "labels.json": json.dumps(LABELS)}, ["1 of 2 videos", "78687"]),
        ({}, ["There is no", "train.json", "data.source=something"]),
    ],
)
def test_mistakes_in_something(tree, texts, expected):
    root = tree(texts, ["videos/42.webm"])
    message = refusal("something", root, "TRAIN", num_classes=3)
    assert all(words in message for words in expected), message


def test_mirrored_classes():
    camera = ("Turning the camera left while filming something", "Turning the camera right while filming something")
    classes = (
        camera[1],
        *NAMES,
        "Turning the camera downwards while filming something",
        camera[0],
        "Moving something to the left",
        "Lifting something with something bright on it",
        "Copyright left over",
    )
    assert mirrored(classes) == (camera[::-1], (NAMES[0], NAMES[1]))


@pytest.mark.quick
def test_classes_that_name_a_side():
    assert sided(["turn left", "turnLeft", "leftovers", "anticlockwise"]) == ("turn left", "turnLeft", "anticlockwise")
    assert sided(["Nach Links", "nach rechts", "springt"]) == ("Nach Links", "nach rechts")
    assert sided(["向左", "向右", "跳"]) == ("向左", "向右")
    assert sided(["chain links", "jumps"]) == ()


INDEX = "1 ApplyEyeMakeup\n2 HandstandPushups\n"
UCF = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "HandstandPushups/v_HandStandPushups_g09_c02.avi")
UCF_TEST = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"


@pytest.mark.parametrize("lists", ["ucfTrainTestlist/", ""])
@pytest.mark.parametrize("videos", ["UCF-101/", ""])
def test_ucf101(tree, lists, videos):
    root = tree(
        {
            f"{lists}classInd.txt": INDEX.replace("\n", "\r\n"),
            f"{lists}trainlist01.txt": f"{UCF[0]} 1\r\n{UCF[1]} 2\r\n",
            f"{lists}testlist01.txt": UCF_TEST,
            f"{lists}trainlist02.txt": f"{UCF_TEST} 1\n",
        },
        [videos + name for name in (*UCF, UCF_TEST)],
    )
    manifest = read("ucf101", root, "TRAIN", num_classes=2)
    assert manifest.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert summary(manifest) == under(root, (videos + UCF[0], "ApplyEyeMakeup"), (videos + UCF[1], "HandstandPushups"))
    assert summary(read("ucf101", root, num_classes=2)) == under(root, (videos + UCF_TEST, "ApplyEyeMakeup"))
    second = read("ucf101", root, "TRAIN", num_classes=2, split=2)
    assert summary(second) == under(root, (videos + UCF_TEST, "ApplyEyeMakeup"))


@pytest.mark.parametrize(
    "texts, kwargs, expected",
    [
        ({"trainlist01.txt": f"{UCF[0]} 2\n"}, {}, ["trainlist01.txt line 1", "number 1", "not 2"]),
        ({"trainlist01.txt": "Skipping/v.avi 1\n"}, {}, ["trainlist01.txt line 1", "classInd.txt"]),
        ({"trainlist01.txt": f"{UCF[1]} 2\n"}, {}, ["line 1", "HandStandPushups_g09_c02.avi does not exist"]),
        ({"classInd.txt": "0 ApplyEyeMakeup\n"}, {}, ["classInd.txt line 1", "'0 ApplyEyeMakeup'"]),
        ({"classInd.txt": ""}, {}, ["trainlist01.txt line 1", "a class of classInd.txt"]),
        ({}, dict(split=4), ["trainlist04.txt"]),
        ({}, dict(num_classes=101), ["have 2 classes", "data.num_classes is 101"]),
    ],
)
def test_mistakes_in_ucf101(tree, texts, kwargs, expected):
    root = tree({"classInd.txt": INDEX, "trainlist01.txt": f"{UCF[0]} 1\n", **texts}, UCF[:1])
    message = refusal("ucf101", root, "TRAIN", **kwargs)
    assert all(words in message for words in expected), message


HMDB = ("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "#20_Rhythm_clap_u_nm_np5_fr_goo_0.avi", "x_clap_(1).avi")


@pytest.mark.parametrize("lists", ["testTrainMulti_7030_splits/", "", "splits/"])
@pytest.mark.parametrize("videos", ["", "hmdb51_org/"])
def test_hmdb51(tree, lists, videos):
    paths = [f"{videos}{folder}/{name}" for folder, name in zip(("brush_hair", "clap", "clap"), HMDB, strict=True)]
    root = tree(
        {
            f"{lists}brush_hair_test_split1.txt": f"{HMDB[0]} 1 \n",
            f"{lists}clap_test_split1.txt": f"{HMDB[1]} 2 \n{HMDB[2]} 0 \n",
            f"{lists}brush_hair_test_split2.txt": f"{HMDB[0]} 2 \n",
            f"{lists}clap_test_split2.txt": f"{HMDB[1]} 1 \n{HMDB[2]} 1 \n",
        },
        paths,
    )
    manifest = read("hmdb51", root, "TRAIN", num_classes=2)
    assert manifest.classes == ("brush_hair", "clap")
    assert summary(manifest) == under(root, (paths[0], "brush_hair"))
    assert summary(read("hmdb51", root, num_classes=2)) == under(root, (paths[1], "clap"))
    second = read("hmdb51", root, "TRAIN", num_classes=2, split=2)
    assert summary(second) == under(root, (paths[1], "clap"), (paths[2], "clap"))


@pytest.mark.parametrize(
    "text, kwargs, expected",
    [
        ("x.avi 3 \n", {}, ["clap_test_split1.txt line 1", "'x.avi 3'"]),
        ("x.avi\n", {}, ["clap_test_split1.txt line 1"]),
        ("x.avi 1\n", dict(split=4), ["CLASS_test_split4.txt", "data.split=4"]),
        ("x.avi 1\n", dict(path="training"), ["'training'"]),
        ("x.avi 1\n", {}, ["clap/x.avi does not exist"]),
        ("x.avi 0\n", {}, ["no videos"]),
    ],
)
def test_mistakes_in_hmdb51(tree, text, kwargs, expected):
    root = tree({"clap_test_split1.txt": text})
    message = refusal("hmdb51", root, "TRAIN", **{"num_classes": 1, **kwargs})
    assert all(words in message for words in expected), message


@pytest.mark.quick
def test_a_source_is_registered_once():
    with pytest.raises(ValueError, match="'csv' is registered twice"):
        register("csv", SOURCES["lists"])
    assert set(SOURCES) == {path.stem for path in Path(sources.__file__).parent.glob("*.py")} - NO_SOURCES


def test_unknown_source(tmp_path):
    with pytest.raises(DataError, match="data.source must be one of auto, csv, .*'imagenet'"):
        read_manifest("train.csv", source="imagenet", root=str(tmp_path), num_classes=2)


def test_class_names_without_reading_a_list(tree):
    root = tree({"labels.json": json.dumps(LABELS), "order.txt": "b\na\n"})
    assert class_names(("train.json", "x.json"), source="something", root=root, num_classes=3) == NAMES
    assert class_names("none.csv", source="csv", root=root, num_classes=3) is None
    assert class_names("none.csv", source="csv", root=root, num_classes=2, classes="order.txt") == ("b", "a")


@pytest.mark.quick
def test_a_csv_file_is_parsed_once_until_its_text_changes(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("a.mp4,0\n", encoding="utf-8")
    first = csv.read(path, root=tmp_path, split=1)
    assert csv.read(path, root=tmp_path, split=1) is first
    path.write_text("a.mp4,1\n", encoding="utf-8")  # as long as before, and perhaps in the same tick of the clock
    assert [entry.label for entry in csv.read(path, root=tmp_path, split=1).entries] == ["1"]
    other = csv.read(path, root=tmp_path / "other", split=1)
    assert [entry.path for entry in other.entries] == [str(tmp_path / "other" / "a.mp4")]

"""Every source reads a small tree in the layout its authors publish, with real videos, and names every mistake."""

import json
import os
import shutil

import cv2
import pytest
from numbered import picture, read_number, write

from input_pipeline import DataError
from input_pipeline.annotations import class_names, read_manifest
from input_pipeline.sources import SOURCES
from input_pipeline.sources.something import mirrored
from input_pipeline.videos import open_video

FRAMES = 8
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
FOLDER = ""  # instead of an extension: a folder of frames


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Extension -> one clip of numbered frames."""
    folder = tmp_path_factory.mktemp("clips")
    made = {extension: write(folder / f"clip{extension}", codec, FRAMES) for extension, codec in CODECS.items()}
    os.mkdir(folder / "frames")
    for number in range(FRAMES):
        cv2.imwrite(str(folder / "frames" / f"img_{number + 1:05d}.jpg"), picture(number))
    return {**made, FOLDER: str(folder / "frames")}


@pytest.fixture
def tree(tmp_path, clips):
    """Makes the root of a data set: `texts` are its lists by name, `videos` the names of its videos."""

    def make(texts, videos=()):
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for name in videos:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            extension = os.path.splitext(name)[1]
            if extension == FOLDER:
                shutil.copytree(clips[extension], tmp_path / name)
            else:
                shutil.copy(clips.get(extension, clips[".mp4"]), tmp_path / name)
        return str(tmp_path)

    return make


def read(source, root, part="VAL", path=None, **kwargs):
    module = SOURCES[source]
    kwargs.setdefault("complete", part == "TRAIN")
    return read_manifest(path or getattr(module, part), source=source, root=root, train=module.TRAIN, **kwargs)


def summary(manifest):
    """Path from the root and class of every video, each of which must show its frames."""
    shown = []
    for record in manifest.records:
        video = open_video(record)
        assert [read_number(frame) for frame in video.frames(range(len(video.times)))] == list(range(FRAMES))
        label = manifest.classes[record.label] if manifest.classes and record.label >= 0 else record.label
        shown.append((record.path, label))
    assert [record.id for record in manifest.records] == list(range(len(manifest.records)))
    return shown


def under(root, *pairs):
    return [(os.path.join(root, path), label) for path, label in pairs]


def refusal(source, root, part="VAL", **kwargs):
    kwargs.setdefault("num_classes", 2)
    with pytest.raises(DataError) as error:
        read(source, root, part, **kwargs)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_lists_split_at_the_last_separator(tree):
    root = tree(
        {"train.txt": "a.mp4 0\nwith space, and comma.mp4 1\n\nb c.mp4,1\nsub/d.mp4\t0 \n"},
        ["a.mp4", "with space, and comma.mp4", "b c.mp4", "sub/d.mp4"],
    )
    manifest = read("lists", root, "TRAIN", num_classes=2)
    assert summary(manifest) == under(
        root, ("a.mp4", 0), ("with space, and comma.mp4", 1), ("b c.mp4", 1), ("sub/d.mp4", 0)
    )
    assert [record.line for record in manifest.records] == [1, 2, 4, 5]


def test_lists_with_names_and_absolute_paths(tree):
    root = tree({"names.txt": "hop\nskip\n"}, ["a.mp4"])
    tree({"val.txt": f"{root}/a.mp4 skip\n"})
    assert summary(read("lists", root, num_classes=2, classes="names.txt")) == under(root, ("a.mp4", "skip"))


@pytest.mark.parametrize(
    "text, parts",
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
def test_mistakes_in_lists(tree, text, parts):
    root = tree({"val.txt": text}, ["a.mp4"])
    assert all(part in refusal("lists", root) for part in parts)


def test_folder_names_that_end_in_numbers(tree):
    """What looks like a frame count belongs to the name where there is such a folder."""
    root = tree({"val.txt": "person 12 1\n"}, ["person 12"])
    assert summary(read("frames", root, num_classes=2)) == under(root, ("person 12", 1))


@pytest.mark.parametrize(
    "name, text", [("val.csv", "path,label\nvideo/7,1\nvideo/8/,0\n"), ("val.txt", "video/7 1\nvideo/8/ 0\n")]
)
def test_frames(tree, name, text):
    root = tree({name: text}, ["video/7", "video/8"])
    assert summary(read("frames", root, num_classes=2)) == under(root, ("video/7", 1), ("video/8/", 0))


def test_folders(tree):
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


def test_numbers_as_folder_names_are_names(tree):
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


HEADER = "label,youtube_id,time_start,time_end,split"
KINETICS = (
    f'{HEADER},is_cc\nriding a bike,-a_1,12,22,train,0\n"massaging person\'s head",b2,0,10,train,1\n'
    "riding a bike,c3,114,124,train,0\n"
)
BIKE, HEAD = "riding a bike", "massaging person's head"


@pytest.mark.parametrize(
    "videos",
    [
        ("-a_1_000012_000022.mp4", "b2_000000_000010.mp4", "c3_000114_000124.mp4"),
        (
            "train/riding a bike/-a_1_000012_000022.mp4",
            "train/massaging person's head/b2.mkv",
            "train/riding a bike/c3.webm",
        ),
        ("train/riding_a_bike/-a_1.mp4", "train/massaging_person's_head/b2_000000_000010.mp4.webm", "train/c3.MP4"),
        ("frames/-a_1_000012_000022", "frames/b2_000000_000010", "frames/c3"),
    ],
)
def test_kinetics_layouts(tree, videos):
    root = tree({"train.csv": KINETICS}, videos)
    manifest = read("kinetics", root, "TRAIN", num_classes=2)
    assert manifest.classes == (HEAD, BIKE) and manifest.missing == ()
    assert summary(manifest) == under(root, *zip(videos, (BIKE, HEAD, BIKE), strict=True))
    assert [record.line for record in manifest.records] == [2, 3, 4]


def test_kinetics_digest_is_that_of_the_data_and_not_of_the_layout(tree):
    videos = ["-a_1_000012_000022.mp4", "b2_000000_000010.mp4"]
    root = tree({"train.csv": KINETICS}, videos)
    before = read("kinetics", root, "TRAIN", num_classes=2, missing="leave_out")
    assert before.missing == ("c3_000114_000124",)
    os.mkdir(f"{root}/train")
    for video in videos:
        os.rename(f"{root}/{video}", f"{root}/train/{video}")
    assert read("kinetics", root, "TRAIN", num_classes=2, missing="leave_out").digest == before.digest
    tree({}, ["c3.mp4"])
    assert read("kinetics", root, "TRAIN", num_classes=2).digest != before.digest


def test_kinetics_whole_files_are_cut_and_trimmed_files_are_not(tree):
    root = tree({"train.csv": KINETICS}, ["-a_1.mp4", "b2_000000_000010.mp4", "c3.mp4"])
    records = read("kinetics", root, "TRAIN", num_classes=2).records
    assert [(record.start, record.end) for record in records] == [(12, 22), (None, None), (114, 124)]


def test_kinetics_lists(tree):
    """The validation list under both of its names, and a test list without labels."""
    for name in ("val.csv", "validate.csv"):
        root = tree({name: f"{HEADER}\nriding a bike,v4,3,13,val\n", "train.csv": KINETICS}, ["val/v4.mp4"])
        assert summary(read("kinetics", root, num_classes=2)) == under(root, ("val/v4.mp4", BIKE))
        os.remove(f"{root}/{name}")
        os.remove(f"{root}/val/v4.mp4")
    tree({"test.csv": "youtube_id,time_start,time_end,split\nt5,3,13,test\n"}, ["test/t5_000003_000013.mp4"])
    assert summary(read("kinetics", root, path="test.csv", num_classes=2)) == under(
        root, ("test/t5_000003_000013.mp4", -1)
    )


def test_kinetics_without_a_training_list_takes_the_classes_of_the_list_itself(tree):
    root = tree({"val.csv": f"{HEADER}\nhop,a,3,13,val\n"}, ["a.mp4"])
    assert read("kinetics", root, num_classes=1).classes == ("hop",)


def test_kinetics_with_an_order_of_ones_own(tree):
    root = tree({"train.csv": KINETICS, "order.txt": f"{BIKE}\n{HEAD}\n"}, ["-a_1.mp4", "b2.mp4", "c3.mp4"])
    assert [r.label for r in read("kinetics", root, "TRAIN", num_classes=2).records] == [1, 0, 1]
    manifest = read("kinetics", root, "TRAIN", num_classes=2, classes="order.txt")
    assert [r.label for r in manifest.records] == [0, 1, 0] and manifest.classes == (BIKE, HEAD)


def test_kinetics_walk_ends_in_a_loop_of_links(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    root = tree({"train.csv": KINETICS}, ["-a_1.mp4", "here/b2.mp4"])
    os.rename(f"{root}/-a_1.mp4", elsewhere / "-a_1.mp4")
    os.symlink(elsewhere, f"{root}/linked")
    os.symlink("..", f"{root}/here/loop")
    os.symlink("nowhere", f"{root}/here/broken")
    manifest = read("kinetics", root, "TRAIN", num_classes=2, missing="leave_out")
    assert sorted(summary(manifest)) == sorted(under(root, ("linked/-a_1.mp4", BIKE), ("here/b2.mp4", HEAD)))


def test_kinetics_missing_videos_are_counted(tree):
    root = tree({"train.csv": KINETICS}, ["b2.mp4"])
    sentence = refusal("kinetics", root, "TRAIN")
    assert "2 of 3 videos" in sentence and "-a_1_000012_000022" in sentence and "data.missing=leave_out" in sentence
    os.remove(f"{root}/b2.mp4")
    assert "all of its 3 videos are missing" in refusal("kinetics", root, "TRAIN", missing="leave_out")


def test_kinetics_two_files_of_one_video(tree):
    root = tree({"train.csv": KINETICS}, ["train/b2.mp4", "small/b2.mp4"])
    sentence = refusal("kinetics", root, "TRAIN")
    assert "train/b2.mp4" in sentence and "small/b2.mp4" in sentence and "same video" in sentence


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["line 1", "header"]),
        ("path,label\na.mp4,0\n", ["line 1", "header", "'path,label'"]),
        (f"{HEADER}\nhop,a,3\n", ["line 2", "5 columns", "found 3"]),
        (f"{HEADER}\nhop,a,3,soon,train\n", ["line 2", "'soon'"]),
        (f"{HEADER}\nhop,a,nan,5,train\n", ["line 2", "'nan'"]),
        (f"{HEADER}\nhop,a,3,13,train\nskip,a,3,13,train\n", ["line 3", "line 2"]),
        (f"{HEADER}\nhop,a,3,13,train\n,b,3,13,train\n", ["have 1 classes", "data.num_classes is 2"]),
        (f"{HEADER}\nhop,a,3,13,train\nskip,b,3,13,train\n,c,3,13,train\n", ["line 4", "must give a label"]),
        (HEADER, ["no videos"]),
    ],
)
def test_mistakes_in_kinetics(tree, text, parts):
    root = tree({"train.csv": text}, ["a.mp4", "b.mp4", "c.mp4"])
    sentence = refusal("kinetics", root, "TRAIN")
    assert all(part in sentence for part in parts), sentence


def test_kinetics_label_that_the_training_list_lacks(tree):
    root = tree({"train.csv": KINETICS, "val.csv": f"{HEADER}\nriding bike,a,3,13,val\n"}, ["a.mp4"])
    assert "val.csv line 2: the label 'riding bike' is not one of the 2 classes" in refusal("kinetics", root)


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
    "texts, parts",
    [
        ({"train.json": "[", "labels.json": "{}"}, ["train.json line 1", "not JSON"]),
        ({"train.json": "{}"}, ["train.json", "list", "dict"]),
        ({"train.json": '[{"id": "42"}, {"id": 7}]'}, ["item 2", "no id"]),
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
def test_mistakes_in_something(tree, texts, parts):
    root = tree(texts, ["videos/42.webm"])
    sentence = refusal("something", root, "TRAIN", num_classes=3)
    assert all(part in sentence for part in parts), sentence


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
    "texts, kwargs, parts",
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
def test_mistakes_in_ucf101(tree, texts, kwargs, parts):
    root = tree({"classInd.txt": INDEX, "trainlist01.txt": f"{UCF[0]} 1\n", **texts}, UCF[:1])
    sentence = refusal("ucf101", root, "TRAIN", **kwargs)
    assert all(part in sentence for part in parts), sentence


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
    "text, kwargs, parts",
    [
        ("x.avi 3 \n", {}, ["clap_test_split1.txt line 1", "'x.avi 3'"]),
        ("x.avi\n", {}, ["clap_test_split1.txt line 1"]),
        ("x.avi 1\n", dict(split=4), ["CLASS_test_split4.txt", "data.split=4"]),
        ("x.avi 1\n", dict(path="training"), ["'training'"]),
        ("x.avi 1\n", {}, ["clap/x.avi does not exist"]),
        ("x.avi 0\n", {}, ["no videos"]),
    ],
)
def test_mistakes_in_hmdb51(tree, text, kwargs, parts):
    root = tree({"clap_test_split1.txt": text})
    sentence = refusal("hmdb51", root, "TRAIN", **{"num_classes": 1, **kwargs})
    assert all(part in sentence for part in parts), sentence


def test_unknown_source(tmp_path):
    with pytest.raises(DataError, match="data.source must be one of csv, .*'imagenet'"):
        read_manifest("train.csv", source="imagenet", root=str(tmp_path), num_classes=2)


def test_class_names_without_reading_a_list(tree):
    root = tree({"labels.json": json.dumps(LABELS), "order.txt": "b\na\n"})
    assert class_names(("train.json", "x.json"), source="something", root=root, num_classes=3) == NAMES
    assert class_names("none.csv", source="csv", root=root, num_classes=3) is None
    assert class_names("none.csv", source="csv", root=root, num_classes=2, classes="order.txt") == ("b", "a")

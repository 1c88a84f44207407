"""Kinetics in every layout in which people keep it, with real videos; every mistake in its lists is named."""

import os

import pytest
from trees import read, refusal, summary, under

HEADER = "label,youtube_id,time_start,time_end,split"
KINETICS = (
    f'{HEADER},is_cc\nriding a bike,-a_1,12,22,train,0\n"massaging person\'s head",b2,0,10,train,1\n'
    "riding a bike,c3,114,124,train,0\n"
)
BIKE, HEAD = "riding a bike", "massaging person's head"


@pytest.mark.quick
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
def test_layouts(tree, videos):
    root = tree({"train.csv": KINETICS}, videos)
    manifest = read("kinetics", root, "TRAIN", num_classes=2)
    assert manifest.classes == (HEAD, BIKE) and manifest.missing == ()
    assert summary(manifest) == under(root, *zip(videos, (BIKE, HEAD, BIKE), strict=True))
    assert [record.line for record in manifest.records] == [2, 3, 4]


def test_the_digest_does_not_depend_on_the_layout(tree):
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


def test_whole_files_are_cut_and_trimmed_files_are_not(tree):
    root = tree({"train.csv": KINETICS}, ["-a_1.mp4", "b2_000000_000010.mp4", "c3.mp4"])
    records = read("kinetics", root, "TRAIN", num_classes=2).records
    assert [(record.start, record.end) for record in records] == [(12, 22), (None, None), (114, 124)]


def test_validation_and_test_lists(tree):
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


def test_without_a_training_list_it_takes_the_classes_of_the_list_itself(tree):
    root = tree({"val.csv": f"{HEADER}\nhop,a,3,13,val\n"}, ["a.mp4"])
    assert read("kinetics", root, num_classes=1).classes == ("hop",)


def test_a_class_file_gives_another_order(tree):
    root = tree({"train.csv": KINETICS, "order.txt": f"{BIKE}\n{HEAD}\n"}, ["-a_1.mp4", "b2.mp4", "c3.mp4"])
    assert [r.label for r in read("kinetics", root, "TRAIN", num_classes=2).records] == [1, 0, 1]
    manifest = read("kinetics", root, "TRAIN", num_classes=2, classes="order.txt")
    assert [r.label for r in manifest.records] == [0, 1, 0] and manifest.classes == (BIKE, HEAD)


def test_the_search_ends_in_a_loop_of_links(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    root = tree({"train.csv": KINETICS}, ["-a_1.mp4", "here/b2.mp4"])
    os.rename(f"{root}/-a_1.mp4", elsewhere / "-a_1.mp4")
    os.symlink(elsewhere, f"{root}/linked")
    os.symlink("..", f"{root}/here/loop")
    os.symlink("nowhere", f"{root}/here/broken")
    manifest = read("kinetics", root, "TRAIN", num_classes=2, missing="leave_out")
    assert sorted(summary(manifest)) == sorted(under(root, ("linked/-a_1.mp4", BIKE), ("here/b2.mp4", HEAD)))


def test_missing_videos_are_counted(tree):
    root = tree({"train.csv": KINETICS}, ["b2.mp4"])
    message = refusal("kinetics", root, "TRAIN")
    assert "2 of 3 videos" in message and "-a_1_000012_000022" in message and "data.missing=leave_out" in message
    os.remove(f"{root}/b2.mp4")
    assert "all of its 3 videos are missing" in refusal("kinetics", root, "TRAIN", missing="leave_out")


def test_two_files_of_one_video_are_refused(tree):
    root = tree({"train.csv": KINETICS}, ["train/b2.mp4", "small/b2.mp4"])
    message = refusal("kinetics", root, "TRAIN")
    assert "train/b2.mp4" in message and "small/b2.mp4" in message and "same video" in message


@pytest.mark.parametrize(
    "text, expected",
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
def test_mistakes_in_lists(tree, text, expected):
    root = tree({"train.csv": text}, ["a.mp4", "b.mp4", "c.mp4"])
    message = refusal("kinetics", root, "TRAIN")
    assert all(words in message for words in expected), message


def test_a_label_that_the_training_list_lacks_is_refused(tree):
    root = tree({"train.csv": KINETICS, "val.csv": f"{HEADER}\nriding bike,a,3,13,val\n"}, ["a.mp4"])
    assert "val.csv line 2: the label 'riding bike' is not one of the 2 classes" in refusal("kinetics", root)

"""Checks of data before a run: what is refused, and what the user is told once."""

import os
import shlex

import pytest
from clips import pipeline
from command import one_sentence
from numbered import write

from input_pipeline import check, prepare
from input_pipeline.errors import DataError
from input_pipeline.remarks import (
    check_evaluated_data,
    check_training_data,
    class_remarks,
    flip_remarks,
    layout_remarks,
    max_bad_videos,
)


def make(folder, train, val, **fields):
    """Returns a pipeline on files that no test decodes. `train` and `val` are {name: content or target of a link}."""
    for split, videos in (("train", train), ("val", val)):
        for name, content in videos.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(content) if isinstance(content, os.PathLike) else path.write_bytes(content)
        rows = [f"{name},{number % 3}\n" for number, name in enumerate(videos)]
        (folder / f"{split}.csv").write_text("".join(rows))
    return pipeline(str(folder), **fields)


TRAIN = {f"t{i}.mp4": b"x" for i in range(6)}
VAL = {f"v{i}.mp4": b"x" for i in range(3)}


def remarks(data, batch_size=6, skips_bad=False):
    return check_training_data(data, batch_size, skips_bad)


@pytest.mark.quick
def test_good_data_need_no_remark(tmp_path):
    assert remarks(make(tmp_path, TRAIN, VAL)) == []


@pytest.mark.quick
def test_classes_with_few_videos_are_named(tmp_path):
    train = {f"t{i}.mp4": b"x" for i in range(40)}
    data = make(tmp_path, train, VAL)
    assert list(class_remarks(data)) == []

    def sentences(counts, **fields):
        names = iter(train)
        rows = [f"{next(names)},{label}\n" for label, count in counts.items() for _ in range(count)]
        (tmp_path / "train.csv").write_text("".join(rows))
        return list(class_remarks(pipeline(str(tmp_path), **fields)))

    (sentence,) = sentences({"0": 20, "1": 9, "2": 3})
    assert sentence.startswith("Classes with fewer than 10 training videos: 2 3, 1 9. data.balance=1.0")
    (sentence,) = sentences({"0": 20, "1": 9, "2": 3}, balance=1.0)
    assert sentence == "Classes with fewer than 10 training videos: 2 3, 1 9."
    without, few = sentences({"0": 10, "1;0": 10, "2": 5, "": 2}, labels="many")
    assert without.startswith("2 of 27 training videos have no label.") and "videos: 2 5." in few


@pytest.mark.quick
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["t1.mp4", "./t1.mp4", "{root}/t1.mp4", "sub/../t1.mp4"])
def test_lines_of_an_exclude_list_have_several_forms(tmp_path, form, end):
    exclude = tmp_path / "exclude.txt"
    exclude.write_bytes(f"{form.format(root=tmp_path)}{end}v0.mp4{end}".encode())
    data = make(tmp_path, TRAIN, VAL, exclude=str(exclude))
    assert remarks(data, batch_size=5) == []
    assert (data.train_manifest.excluded, data.val_manifest.excluded) == (("t1.mp4",), ("v0.mp4",))


@pytest.mark.quick
def test_lines_that_name_no_video_are_counted_or_refused(tmp_path):
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("gone.mp4\nv0.mp4\nold.mp4\n")
    (sentence,) = remarks(make(tmp_path, TRAIN, VAL, exclude=str(exclude)))
    assert sentence == "2 lines of data.exclude name no video, for example 'gone.mp4'."
    exclude.write_text("gone.mp4\nother/v0.mp4\n")
    with pytest.raises(
        DataError, match=r"^data\.exclude=.*exclude\.txt names no video of .*train\.csv or .*'gone\.mp4'"
    ):
        remarks(make(tmp_path, TRAIN, VAL, exclude=str(exclude)))
    exclude.write_text("\n")  # as `check` writes it if nothing is broken
    assert remarks(make(tmp_path, TRAIN, VAL, exclude=str(exclude))) == []


@pytest.mark.quick
def test_empty_files_are_found_before_training(tmp_path):
    data = make(tmp_path, TRAIN | {"t1.mp4": b""}, VAL)
    (sentence,) = remarks(data)
    assert "1 of 6 videos" in sentence and "t1.mp4" in sentence
    with pytest.raises(
        DataError, match=r"2 of 6 videos of .*train\.csv are empty files, .*data\.max_bad_fraction=0\.01"
    ):
        remarks(make(tmp_path, TRAIN | {"t1.mp4": b"", "t2.mp4": b""}, VAL))
    data = make(tmp_path, TRAIN, VAL | {"v2.mp4": b""})
    for inspect in (remarks, lambda data: check_evaluated_data(data, False)):
        with pytest.raises(
            DataError, match=r"1 of 3 videos of .*val\.csv are empty files, .*v2\.mp4.*eval\.on_bad=skip"
        ):
            inspect(data)
    assert "v2.mp4" in remarks(data, skips_bad=True)[0]
    check_evaluated_data(data, True)
    check_evaluated_data(data, False, "train")


@pytest.mark.quick
def test_a_video_of_both_lists_is_named_whatever_its_path(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "t0.mp4").write_bytes(b"x")
    data = make(tmp_path, TRAIN | {"t0.mp4": inside / "t0.mp4"}, VAL | {"linked/v9.mp4": inside / "t0.mp4"})
    (sentence,) = remarks(data)
    assert "1 of 4 videos" in sentence and "for example linked/v9.mp4" in sentence
    assert "6 of 6 videos" in remarks(make(tmp_path, TRAIN, TRAIN))[0]


@pytest.mark.quick
def test_a_batch_that_is_larger_than_the_data_is_named(tmp_path):
    data = make(tmp_path, TRAIN, VAL, repeats=2)
    assert remarks(data, batch_size=12) == []
    (sentence,) = remarks(data, batch_size=14)
    assert "train.batch_size=14" in sentence and "at most 12" in sentence


@pytest.mark.quick
def test_crops_that_show_little_of_a_frame_are_named(tmp_path):
    data = make(tmp_path, TRAIN, VAL, size=24, short_side=(60, 80), test_short_side=96)
    tested, trained = remarks(data)
    assert "data.test_short_side=96" in tested and "25%" in tested
    assert "data.short_side=(60, 80)" in trained and "40%" in trained
    assert len(remarks(make(tmp_path, TRAIN, VAL, size=24, short_side=(60, 80), crop="resized"))) == 0


@pytest.mark.quick
def test_commands_refuse_an_exclude_list_that_names_no_video(tmp_path, capsys):
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("gone.mp4\n")
    make(tmp_path, TRAIN, VAL)
    fields = dict(root=tmp_path, num_classes=3, exclude=exclude, classes="none", source="csv", flip_swaps="()")
    flags = ["--config=configs/demo.py:vit", *(f"--config.data.{name}={value}" for name, value in fields.items())]
    for command in (check, prepare):
        assert command.main([*flags, f"--out={tmp_path}/out"]) == 2
        assert f"data.exclude={exclude} names no video" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "out" / "report.csv").exists() and not (tmp_path / "out" / "options.json").exists()


def flips(folder, names, **fields):
    data = make(folder, TRAIN, VAL, classes="classes.txt", **fields)
    (folder / "classes.txt").write_text("\r\n".join(names) + "\r\n")
    return list(flip_remarks(data))


@pytest.mark.quick
@pytest.mark.parametrize(
    "names",
    [
        ("slide left", "slide right", "stay"),
        ("Swiping Left", "Swiping Right", "stay"),
        ("swipe_left_1", "swipe_right_1", "stay"),
        ("SwipeLeftHand", "SwipeRightHand", "stay"),
        ("from left to right", "from right to left", "stay"),
        ("LEFT", "RIGHT", "stay"),
    ],
)
def test_classes_that_differ_in_left_and_right_are_named_if_flips_keep_their_labels(tmp_path, names):
    (sentence,) = flips(tmp_path, names, flip=0.5)
    assert repr(names[0]) in sentence and repr(names[1]) in sentence and "data.flip_sides=True" in sentence
    for fields in (dict(flip=0.0), dict(flip=0.5, flip_sides=True), dict(flip=0.5, flip_swaps=((0, 1),))):
        assert flips(tmp_path, names, **fields) == []


@pytest.mark.quick
def test_other_names_are_no_sides(tmp_path):
    names = ("leftover", "rightover", "left")
    assert flips(tmp_path, names, flip=0.5) == []
    (sentence,) = flips(tmp_path, names, flip=0.5, flip_sides=True)
    assert "data.flip_sides=True swaps no labels" in sentence


@pytest.mark.quick
@pytest.mark.parametrize(
    "videos, fraction, most", [(5, 0.01, 1), (1000, 0.01, 10), (40, 0.1, 4), (40, 0.0, 0), (1, 0.5, 0), (3, 1.0, 2)]
)
def test_a_small_data_set_tolerates_one_bad_video(videos, fraction, most):
    assert max_bad_videos(videos, fraction) == most


def own_data(root, *names, **fields):
    """Returns a pipeline on class folders whose files no test decodes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return pipeline(str(root), source="auto", **fields)


@pytest.mark.quick
def test_a_drawn_validation_part_is_described(tmp_path):
    data = own_data(tmp_path, *(f"{c}/{i}.mp4" for c in "ab" for i in range(10)), "c/match1_1.mp4")
    drawn, without = layout_remarks(data)
    assert drawn.startswith(f"{tmp_path} has no validation part. 4 of its 21 videos are drawn")
    assert without.endswith("there is a single one: c.")
    assert list(layout_remarks(own_data(tmp_path, "val/a/1.mp4", "train/a/2.mp4", num_classes=1))) == [
        f"{tmp_path} also holds class folders. The videos are those of train."
    ]


@pytest.mark.quick
def test_groups_that_names_show_are_suggested_until_data_group_is_given(tmp_path):
    names = [f"{c}/v_{c}_g{g:02}_c{i:02}.mp4" for c in "abc" for g in range(5) for i in range(3)]
    *_, suggested = layout_remarks(own_data(tmp_path, *names))
    flag = "--config.data.group="
    (group,) = (word.removeprefix(flag) for word in shlex.split(suggested) if word.startswith(flag))
    assert len(list(layout_remarks(own_data(tmp_path, group=group)))) == 1
    with pytest.raises(DataError, match=r"data\.group must be None unless data\.source=auto"):
        pipeline(str(tmp_path), group=group)


@pytest.mark.parametrize(
    "part, expected", [("1,9", "lasts 2.4 s"), ("3,", "lasts 2.4 s"), ("1.01,1.02", "no frame lies between 1.01 s and")]
)
def test_parts_that_a_video_does_not_hold_are_refused_before_a_run(tmp_path, part, expected):
    write(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4")
    data = make(tmp_path, {}, {}, num_classes=1)
    (tmp_path / "train.csv").write_text(f"a.mp4,0,0,1.2\na.mp4,0,{part}\n")
    (tmp_path / "val.csv").write_text("b.mp4,0,0,2.5\n")
    with pytest.raises(DataError, match=rf"train\.csv line 2: .*a\.mp4: {expected}"):
        remarks(data, batch_size=1)
    (tmp_path / "train.csv").write_text("a.mp4,0,0,1.2\na.mp4,0,1.2,2.4\n")
    assert remarks(pipeline(str(tmp_path), num_classes=1), batch_size=1) == []


def test_parts_of_a_video_that_cannot_be_seeked_in_are_named(tmp_path):
    for name in ("a.avi", "b.mp4"):
        write(tmp_path / name, codec="mpeg4")
    data = make(tmp_path, {}, {}, num_classes=1)
    (tmp_path / "train.csv").write_text("a.avi,0,0,1\na.avi,0,1,2\nb.mp4,0,0,1\n")
    (tmp_path / "val.csv").write_text("b.mp4,0,1,2\n")
    (sentence,) = remarks(data, batch_size=1)
    assert sentence.startswith(f"1 videos with labelled parts, such as {tmp_path}/a.avi, cannot be seeked in")


@pytest.mark.parametrize(
    "train, val, shared",
    [("0,1", "1,2", 0), ("0,1", "0.9,2", 1), ("0,1", ",", 1), (",", "0.5,1", 1), ("0,1", "0,1", 1)],
)
def test_parts_that_overlap_are_in_both_lists(tmp_path, train, val, shared):
    write(tmp_path / "a.mp4")
    data = make(tmp_path, {}, {}, num_classes=1)
    (tmp_path / "train.csv").write_text(f"a.mp4,0,{train}\n")
    (tmp_path / "val.csv").write_text(f"a.mp4,0,{val}\n")
    found = remarks(data, batch_size=1)
    assert len(found) == shared and all("1 of 1 videos of " in sentence for sentence in found)

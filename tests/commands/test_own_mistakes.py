"""Mistakes in own data end with status 2 and one sentence; what may be meant is trained, and said."""

import unicodedata

import pytest
from command import ROOT, one_sentence
from numbered import write

import main
from input_pipeline import Pipeline
from input_pipeline.layouts import count_classes
from input_pipeline.remarks import check_training_data, class_remarks, layout_remarks

FOLDERS = [f"{label}/{label}{i}.mp4" for label in ("hop", "run") for i in range(3)]
VIDEOS = [f"{i}.mp4" for i in range(6)]
ACCENTED = "größe"
OTHER_FORM = unicodedata.normalize("NFD", ACCENTED)


def listed(row, videos=VIDEOS):
    """Returns a list with a row for each video; `row` has the fields {video} and {label}."""
    return "".join(row.format(video=video, label=("hop", "run")[i % 2]) + "\n" for i, video in enumerate(videos))


ROWS = listed("{video},{label}")


def below(folder, names=FOLDERS):
    return [f"{folder}/{name}" for name in names]


def make(root, files, lists=()):
    """Writes files, each with its name as content, and lists."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name, text in dict(lists).items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def in_list(text, files=VIDEOS):
    return files, {"train.csv": text}


# Mistake: (files, lists), words of the sentence, and fields of the section `data`.
MISTAKES = {
    "an archive": ((FOLDERS, {"clips.zip": b"PK"}), "clips.zip is an archive. Unpack it", {"root": "{root}/clips.zip"}),
    "a video for the folder": (
        (FOLDERS, {}),
        "hop0.mp4 is a file. Set it to the folder",
        {"root": "{root}/hop/hop0.mp4"},
    ),
    "no folder": (([], {}), "none does not exist. Set it to the folder", {"root": "{root}/none"}),
    "a folder too high": ((below("videos"), {}), "Set data.root={root}/videos.", {}),
    "parts in capitals": (
        ([*below("Train"), *below("Val")], {}),
        "{root}/Train holds class folders. Rename it to train",
        {},
    ),
    "parts without classes": (
        (below("train", VIDEOS) + below("val", VIDEOS), {}),
        "{root}/train holds videos and no",
        {},
    ),
    "a part without classes": ((below("train") + below("val", VIDEOS), {}), "{root}/val holds videos and no class", {}),
    "loose videos": (([*FOLDERS, "0.mp4"], {}), "Move the video to {root}/CLASS/.", {}),
    "one class": ((FOLDERS[:3], {}), "{root}: all videos have the class 'hop'. A classifier needs two", {}),
    "one label": (in_list(listed("{video},hop")), "train.csv: all videos have the class 'hop'", {}),
    "a class in other letters": (
        (below("train") + ["val/Hop/9.mp4"], {}),
        "'Hop' is not the class 'hop': upper and",
        {},
    ),
    "semicolons of Excel": (
        in_list(ROWS.replace(",", ";")),
        "train.csv line 1: '0.mp4;hop' is separated by semicolons",
        {},
    ),
    "tabs": (in_list("path\tlabel\n" + ROWS.replace(",", "\t")), "line 1: 'path\\tlabel' is separated by tabs", {}),
    "blanks": (in_list(ROWS.replace(",", " ")), "line 1: '0.mp4 hop' is separated by blanks", {}),
    "UTF-16": (in_list(ROWS.encode("utf-16")), "line 1 is not UTF-8 text", {}),
    "Latin-1": (in_list(ROWS.replace("hop", ACCENTED).encode("latin-1")), "line 1: the label 'gr\\udcf6", {}),
    "a spreadsheet": (in_list(b"PK\3\4\x14\0\6\0"), "train.csv is a spreadsheet or an archive", {}),
    "no rows": (in_list("path,label\n"), "train.csv lists no videos", {}),
    "another header": (in_list("filename,class\n" + ROWS), "the header is 'filename,class'. The columns must be", {}),
    "a row number": (in_list(",path,label\n" + listed("1,{video},{label}")), "line 1: the header is ',path,label'", {}),
    "swapped columns": (in_list(listed("{label},{video}")), "'0.mp4' stands in the column label, and 'hop' in", {}),
    "pictures": (in_list(listed("{video},{label}", ["0.jpg"]), ["0.jpg"]), "line 1: '0.jpg' is a picture", {}),
    "numbers from 1": (
        in_list("0.mp4,1\n1.mp4,2\n2.mp4,3\n"),
        "3 different numbers from 1 to 3. Number the classes",
        {},
    ),
    "identifiers": (in_list("0.mp4,0\n1.mp4,9001\n"), "2 different numbers from 0 to 9001", {}),
    "two labels on two lines": (
        in_list(ROWS + "0.mp4,run\n"),
        "line 7: 0.mp4 is already on line 1, with the label 'hop'",
        {},
    ),
    "folders of Windows": (
        in_list("hop\\hop0.mp4,hop\n"),
        "line 1: {root}/hop\\hop0.mp4 does not exist. Separate folders by /",
        {},
    ),
    "a blank in a path": (in_list("0.mp4 ,hop\n"), "The path begins or ends with a blank.", {}),
    "paths from another folder": (in_list("data/0.mp4,hop\n"), "Paths are relative to data.root={root}.", {}),
    "a group that is in no name": (
        (FOLDERS, {}),
        "data.group='match([0-9]+)' matches none of the 6 paths",
        {"group": "match([0-9]+)"},
    ),
    "a single group": (
        (FOLDERS, {}),
        "cannot be drawn: no class has two videos, or two groups of data.group",
        {"group": "mp4"},
    ),
    "no expression": ((FOLDERS, {}), "data.group='(hop' is not a regular expression", {"group": "(hop"}),
    "a list that is not there": (in_list(ROWS), "{root}/vla.csv was not found", {"val": "vla.csv"}),
    "other classes than given": (
        in_list(ROWS),
        "have 2 classes, but data.num_classes is 5. Leave out",
        {"num_classes": 5},
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_own_data_ends_in_one_sentence(mistake, tmp_path, capsys):
    (files, lists), words, fields = MISTAKES[mistake]
    root = tmp_path / "data"
    root.mkdir()
    make(root, files, lists)
    fields = {"source": "auto", "root": "{root}", "workers": 0} | fields
    flags = [f"--config.data.{name}={value}".replace("{root}", str(root)) for name, value in fields.items()]
    command = ["main.py", "--config=configs/vit_b16.py", f"--workdir={tmp_path}/run", *flags]
    assert main.main(command) == 2
    assert words.replace("{root}", str(root)) in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
@pytest.mark.parametrize("part", ["", "train/"])
def test_a_run_in_a_folder_of_classes_is_refused_and_writes_nothing(part, tmp_path, monkeypatch, capsys):
    make(tmp_path, [f"{part}{name}" for name in FOLDERS], {})
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for workdir in (f"{tmp_path}/{part}", f"{part}runs/mine"):
        flags = ["--config.data.source=auto", f"--config.data.root={tmp_path}", f"--workdir={workdir}"]
        assert main.main(["main.py", f"--config={ROOT}/configs/vit_b16.py", *flags]) == 2
        assert "the folders of which are classes. Give a folder outside" in one_sentence(capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.quick
def test_a_part_that_starts_behind_the_end_of_its_video_is_refused_at_the_start(tmp_path, capsys):
    write(tmp_path / "0.mp4")
    make(tmp_path, (), {"train.csv": "0.mp4,hop,0,1\n0.mp4,run,1,2\n0.mp4,hop,250,500\n"})
    flags = ["--config.data.source=auto", f"--config.data.root={tmp_path}", f"--workdir={tmp_path}/run"]
    assert main.main(["main.py", "--config=configs/vit_b16.py", *flags]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert "train.csv line 3: " in sentence and "lasts 2.4 s, but its part starts at 250 s" in sentence


def own_data(root, **fields):
    fields = dict(source="auto", root=str(root), train=None, val=None, test=None, classes=None, labels="one") | fields
    return Pipeline(num_classes=count_classes(fields), frames=2, size=16, **fields)


# Data that may be meant: (files, lists), words of the remark, and fields of the section `data`.
REMARKS = {
    "names in other letters": (([*FOLDERS, "Hop/1.mp4"], {}), "The classes 'Hop' and 'hop' differ only in upper", {}),
    "accents in two forms": (
        ([*FOLDERS, f"{ACCENTED}/1.mp4", f"{OTHER_FORM}/2.mp4"], {}),
        "how accents are stored",
        {},
    ),
    "the same file in two classes": (
        (FOLDERS, {"run/copy.mp4": "hop/hop0.mp4", "hop/again.mp4": "hop/hop1.mp4"}),
        "2 videos have the same content as another, for example",
        {},
    ),
    "a group that is not needed": (
        (below("train") + below("val", ["hop/9.mp4"]), {}),
        "data.group has no effect: the validation part is val",
        {"group": "([0-9])"},
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("data", REMARKS)
def test_own_data_that_may_be_meant_are_read_and_a_sentence_says_so(data, tmp_path):
    (files, lists), words, fields = REMARKS[data]
    make(tmp_path, files, lists)
    fields = (
        dict(source="auto", root=str(tmp_path), train=None, val=None, test=None, classes=None, labels="one") | fields
    )
    pipeline = Pipeline(num_classes=count_classes(fields), frames=2, size=16, **fields)
    remarks = [*layout_remarks(pipeline), *check_training_data(pipeline, 2, False), *class_remarks(pipeline)]
    assert sum(words in remark for remark in remarks) == 1, remarks
    if "content" in words:
        (remark,) = (remark for remark in remarks if words in remark)
        assert "run/copy.mp4 (run) as hop/hop0.mp4 (hop)" in remark or "hop/hop0.mp4 (hop) as run/copy.mp4" in remark


@pytest.mark.quick
def test_files_that_macos_and_windows_write_are_no_videos_and_no_classes(tmp_path):
    make(tmp_path, [*FOLDERS, "hop/Thumbs.db", "run/desktop.ini", "run/.DS_Store", "__MACOSX/hop/._hop0.mp4"])
    pipeline = own_data(tmp_path)
    assert pipeline.class_names == ("hop", "run") and len(pipeline.parts.listed.records) == len(FOLDERS)

"""Manifests: what is accepted, and that every mistake is named before training."""

import pytest

from input_pipeline import DataError
from input_pipeline.annotations import read_manifest


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4", "with space, and comma.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.mp4").touch()

    def read(text, num_classes=3, encoding="utf-8", **kwargs):
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        return read_manifest("list.csv", root=str(tmp_path), num_classes=num_classes, **kwargs)

    read.path = tmp_path
    return read


def test_paths_labels_and_lines(folder):
    manifest = folder('path,label\na.mp4,0\n\n"with space, and comma.mp4",2\nsub/d.mp4,1\n'
                      f'{folder.path}/b.mp4,1\n')
    assert [r.path for r in manifest.records] == [
        f"{folder.path}/{name}" for name in ("a.mp4", "with space, and comma.mp4", "sub/d.mp4", "b.mp4")]
    assert [(r.id, r.label, r.line) for r in manifest.records] == [(0, 0, 2), (1, 2, 4), (2, 1, 5), (3, 1, 6)]
    assert manifest.classes is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["", "path,label\n", "path,label\r\n"])
def test_header_and_byte_order_mark_are_optional(folder, encoding, header):
    manifest = folder(header + "a.mp4,0\nb.mp4,1\n", encoding=encoding)
    assert [r.label for r in manifest.records] == [0, 1]


def test_digest_depends_on_videos_labels_and_order_only(folder):
    digest = folder("path,label\na.mp4,0\nb.mp4,1\n").digest
    assert len(digest) == 16 and folder('"a.mp4",0\nb.mp4, 1\n').digest == digest
    others = {folder(text).digest for text in ("b.mp4,1\na.mp4,0\n", "a.mp4,1\nb.mp4,1\n", "a.mp4,0\n")}
    assert len(others | {digest}) == 4


def test_labels_by_name(folder):
    (folder.path / "classes.txt").write_text("hop\nskip left\n0\n", encoding="utf-8-sig")
    manifest = folder("a.mp4,skip left\nb.mp4,0\nc.mp4,1\n", classes="classes.txt", complete=True)
    assert [r.label for r in manifest.records] == [1, 2, 1]  # a label that is a name is that class
    assert manifest.classes == ("hop", "skip left", "0")


@pytest.mark.parametrize("text, parts", [
    ("", ["list.csv", "no videos"]),
    ("path,label\n", ["no videos"]),
    ("a.mp4,0\nb.mp4\n", ["line 2", "two columns"]),
    ("a.mp4,0\nb.mp4,1,2\n", ["line 2", "found 3"]),
    ("a.mp4,0\n,1\n", ["line 2"]),
    ('a.mp4,0\n"b.mp4,1\n', ["line 2"]),
    ("a.mp4,zero\n", ["line 1", "'zero'", "data.classes"]),
    ("a.mp4,0\nb.mp4,3\n", ["line 2", "label 3", "data.num_classes=3"]),
    ("a.mp4,-1\n", ["line 1", "label -1"]),
    ("a.mp4,0\nb.mp4,1\na.mp4,1\n", ["line 3", "line 1", "a.mp4"]),
    ("a.mp4,0\nx.mp4,1\ny.mp4,1\nno/z.mp4,1\n", ["line 2", "x.mp4", "2 others"]),
])
def test_mistakes_are_named(folder, text, parts):
    with pytest.raises(DataError) as error:
        folder(text)
    assert all(part in str(error.value) for part in parts), error.value
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_missing_and_binary_manifests(folder):
    with pytest.raises(DataError, match="none.csv.*No such file"):
        read_manifest("none.csv", root=str(folder.path), num_classes=3)
    with pytest.raises(DataError, match="not UTF-8"):
        folder("caf\xe9.mp4,0\n", encoding="latin-1")


def test_class_file_of_another_length(folder):
    (folder.path / "classes.txt").write_text("hop\nskip\n")
    with pytest.raises(DataError, match="2 class names, but data.num_classes is 3"):
        folder("a.mp4,hop\n", classes="classes.txt")
    (folder.path / "classes.txt").write_text("hop\nskip\nhop\n")
    with pytest.raises(DataError, match="'hop' twice"):
        folder("a.mp4,hop\n", classes="classes.txt")
    with pytest.raises(DataError, match="data.classes"):
        folder("a.mp4,hop\n", classes="none.txt")


def test_training_labels_must_use_every_class(folder):
    text = "a.mp4,0\nb.mp4,1\n"
    with pytest.raises(DataError, match=r"set data\.num_classes=2.*data\.classes"):
        folder(text, complete=True)
    assert folder(text).records  # a validation split may lack a class
    assert folder(text, num_classes=2, complete=True).records

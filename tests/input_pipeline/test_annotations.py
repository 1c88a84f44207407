"""Manifests: which lists are accepted, and that every mistake is named before training."""

import types

import pytest

from input_pipeline import DataError
from input_pipeline.annotations import read_manifest
from input_pipeline.sources import SOURCES, Entry, Listing


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


@pytest.mark.quick
def test_paths_labels_and_lines(folder):
    manifest = folder(f'path,label\na.mp4,0\n\n"with space, and comma.mp4",2\nsub/d.mp4,1\n{folder.path}/b.mp4,1\n')
    assert [r.path for r in manifest.records] == [
        f"{folder.path}/{name}" for name in ("a.mp4", "with space, and comma.mp4", "sub/d.mp4", "b.mp4")
    ]
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


@pytest.mark.parametrize(
    "text, expected",
    [
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
        ("a.mp4,0\nno\0/b.mp4,1\n", ["line 2", "does not exist"]),
        ("a.mp4," + "9" * 9999, ["line 1", "the label '9999", "9999'"]),
        ("a.mp4 " + "9" * 9999, ["line 1", "two columns", "9999'"]),
        ("a.mp4,0\nx.mp4,1\ny.mp4,1\nno/z.mp4,1\n", ["line 2", "x.mp4", "2 more"]),
    ],
)
def test_mistakes_are_named(folder, text, expected):
    with pytest.raises(DataError) as error:
        folder(text)
    assert all(words in str(error.value) for words in expected), error.value
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_missing_and_binary_manifests_are_refused(folder):
    with pytest.raises(DataError, match=r"none\.csv was not found\. Set data\.root"):
        read_manifest("none.csv", root=str(folder.path), num_classes=3)
    with pytest.raises(DataError, match="not UTF-8"):
        folder("caf\xe9.mp4,0\n", encoding="latin-1")


def test_a_class_file_with_a_mistake_is_refused(folder):
    (folder.path / "classes.txt").write_text("hop\nskip\n")
    with pytest.raises(DataError, match="2 class names, but data.num_classes is 3"):
        folder("a.mp4,hop\n", classes="classes.txt")
    (folder.path / "classes.txt").write_text("hop\nskip\nhop\n")
    with pytest.raises(DataError, match="'hop' twice"):
        folder("a.mp4,hop\n", classes="classes.txt")
    with pytest.raises(DataError, match=r"none\.txt was not found\. Set data\.classes"):
        folder("a.mp4,hop\n", classes="none.txt")


def test_training_labels_must_use_every_class(folder):
    text = "a.mp4,0\nb.mp4,1\n"
    with pytest.raises(DataError, match=r"Set data\.num_classes=2.*data\.classes"):
        folder(text, complete=True)
    assert folder(text).records  # a validation split may lack a class
    assert folder(text, num_classes=2, complete=True).records


def test_missing_videos_are_left_out(folder):
    text = "a.mp4,0\nx.mp4,1\nb.mp4,1\nno/z.mp4,2\n"
    manifest = folder(text, missing="leave_out", complete=True)
    assert manifest.missing == ("x.mp4", "no/z.mp4")
    assert [(r.id, r.line, r.label) for r in manifest.records] == [(0, 1, 0), (1, 3, 1)]
    assert manifest.digest == folder("a.mp4,0\nb.mp4,1\n").digest
    with pytest.raises(DataError, match="all of its 2 videos are missing"):
        folder("x.mp4,0\ny.mp4,1\n", missing="leave_out")


def test_the_first_list_that_exists_is_read(folder):
    folder("a.mp4,0\n")
    options = dict(root=str(folder.path), num_classes=1)
    assert read_manifest(("none.csv", "list.csv"), **options).path == f"{folder.path}/list.csv"
    with pytest.raises(DataError, match="none.csv or .*other.csv.*data.root"):
        read_manifest(("none.csv", "other.csv"), **options)


def test_paths_that_leave_the_root(folder):
    manifest = folder(f"../{folder.path.name}/sub/../a.mp4,0\nsub/../b.mp4,1\n")
    assert [r.path for r in manifest.records] == [
        f"{folder.path}/../{folder.path.name}/sub/../a.mp4",
        f"{folder.path}/sub/../b.mp4",
    ]


@pytest.fixture
def numbered_source(monkeypatch, folder):
    """A source whose labels are numbers in the order of its own class names, as in a shard: a file with three rows."""
    entries = tuple(
        Entry(f"clip {row}", str(folder.path / "a.mp4"), label, 0, position=row)
        for row, label in enumerate((2, 0, None))
    )
    monkeypatch.setitem(
        SOURCES,
        "rows",
        types.SimpleNamespace(
            read=lambda path, root, split: Listing(entries), classes=lambda root, train: ("hop", "skip", "turn")
        ),
    )
    return lambda **kwargs: read_manifest("rows", source="rows", root=str(folder.path), num_classes=3, **kwargs)


def test_numbers_of_a_source_keep_their_meaning_in_another_order(folder, numbered_source):
    manifest = numbered_source()
    assert [(r.label, r.position) for r in manifest.records] == [(2, 0), (0, 1), (-1, 2)]
    assert manifest.classes == ("hop", "skip", "turn")
    (folder.path / "order.txt").write_text("turn\nhop\nskip\n")
    manifest = numbered_source(classes="order.txt")
    assert [r.label for r in manifest.records] == [0, 1, -1] and manifest.classes == ("turn", "hop", "skip")
    (folder.path / "order.txt").write_text("leap\nhop\nskip\n")
    with pytest.raises(DataError, match="rows: clip 0: the label 'turn' is not a name of data.classes"):
        numbered_source(classes="order.txt")


@pytest.mark.quick
def test_a_training_list_needs_labels(numbered_source):
    with pytest.raises(DataError, match="rows: clip 2: a training list must give a label"):
        numbered_source(complete=True)

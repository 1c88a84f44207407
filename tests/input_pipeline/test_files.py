"""A file is replaced completely or not at all, and what a killed process leaves is recognised and removed."""

import pytest

from input_pipeline.files import atomic_file, atomic_folder, is_temporary, remove_temporaries, write_text

pytestmark = pytest.mark.quick


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "list.csv"
    write_text(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and is_temporary(temporary.name)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_remains(tmp_path):
    path = tmp_path / "list.csv"
    write_text(path, "old")
    with pytest.raises(ValueError), atomic_file(path) as temporary:
        temporary.write_text("new")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, folder):
    (tmp_path / "file").touch()
    path = tmp_path / folder / "list.csv"
    with pytest.raises(OSError) as raised:
        write_text(path, "new")
    assert raised.value.filename == str(path)


def test_undecodable_file_names_are_written_back(tmp_path):
    write_text(tmp_path / "list.csv", "\udcff.mp4")
    assert (tmp_path / "list.csv").read_bytes() == b"\xff.mp4"


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    for name in (".list.csv.0.tmp", ".hidden", "list.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "list.tmp"}


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path, stale = tmp_path / "export", tmp_path / ".export.0.tmp"
    stale.mkdir()
    with pytest.raises(ValueError), atomic_folder(path) as temporary:
        raise ValueError
    assert not list(tmp_path.iterdir())
    with atomic_folder(path) as temporary:
        (temporary / "weights").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["weights"] and list(tmp_path.iterdir()) == [path]

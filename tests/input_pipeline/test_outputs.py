"""Output files are verified before the work, and two commands do not write one target at once."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from command import ROOT

from input_pipeline.errors import DataError
from input_pipeline.files import atomic_file, atomic_folder, require_lines
from input_pipeline.outputs import is_lock, locked, new_folder, output_file, output_folder, require_space

pytestmark = pytest.mark.quick
TARGETS = {"file": output_file, "folder": output_folder, "new folder": new_folder}


@pytest.mark.parametrize("kind", TARGETS)
def test_one_wins_the_other_says_so_and_no_lock_remains(kind, tmp_path):
    target = tmp_path / "target"
    with TARGETS[kind](target, "out"):
        for same in (target, os.path.relpath(target), tmp_path / "link" / ".." / "target"):
            with pytest.raises(DataError, match=r"^--out=.*target is being written by another command\. Wait"):
                with TARGETS[kind](same, "out"):
                    pass
        with TARGETS[kind](tmp_path / "other", "out"):
            pass
    with TARGETS[kind](target, "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TARGETS)
def test_a_lock_ends_with_its_process(kind, tmp_path):
    program = f"""
import time
from input_pipeline.outputs import {TARGETS[kind].__name__} as reserve
with reserve({str(tmp_path / "target")!r}, "out"):
    print("locked", flush=True)
    time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(DataError, match="another command"), TARGETS[kind](tmp_path / "target", "out"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with TARGETS[kind](tmp_path / "target", "out"):
        pass
    assert not [path for path in tmp_path.rglob("*") if is_lock(path.name)]


def test_parts_of_one_job_share_a_folder_and_its_last_part_removes_the_lock(tmp_path):
    with ExitStack() as parts:
        parts.enter_context(output_folder(tmp_path, "out", shared=True))
        with output_folder(tmp_path, "out", shared=True):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # one part still has it
        with pytest.raises(DataError, match="another command"), output_folder(tmp_path, "out"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_was_removed_after_it_was_opened_is_not_taken(tmp_path, monkeypatch):
    """The first holder removes the lock file while a second process has opened it and a third makes a new one."""
    path, opened = tmp_path / ".lock", []

    def open_and_lose(file, mode):
        opened.append(open(file, mode))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    monkeypatch.setattr("input_pipeline.outputs.open", open_and_lose, raising=False)
    with locked(path, "taken"):
        assert len(opened) == 2 and path.exists()
    assert not path.exists()


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_cannot_be_written_is_known_before_the_work(kind, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^--out=.*x cannot be written: .*file is not a folder\. Give a path"):
        with TARGETS[kind](tmp_path / "file" / "x", "out"):
            pass
    with pytest.raises(DataError, match=r"--out=/proc/none/x cannot be written: "):
        with TARGETS[kind]("/proc/none/x", "out"):
            pass

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written: No space left on device\."):
        with TARGETS[kind](tmp_path / "x", "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_targets_of_the_wrong_kind(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for reserve, target, words in (
        (output_file, "folder", "folder is not a file"),
        (output_file, "pipe", "pipe is not a file"),
        (output_file, "none/x", "none does not exist"),
        (output_folder, "file", "file is not a folder"),
        (new_folder, "file", "file exists and is not an empty folder"),
        (new_folder, "folder", "folder exists and is not an empty folder"),
    ):
        with pytest.raises(DataError, match=words), reserve(tmp_path / target, "out"):
            pass
    with output_folder(tmp_path / "deep" / "er"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]
    require_space(tmp_path / "x", 1)
    with pytest.raises(DataError, match=r"--out=.*x needs 1,000,000,000,000,000 MB, but the disk has "):
        require_space(tmp_path / "x", 10**21, "out")


def test_long_names_have_locks_and_temporary_names_too(tmp_path):
    path = tmp_path / ("走" * 84)  # 252 bytes
    with output_file(path), atomic_file(path) as temporary:
        temporary.write_text("content")
    assert path.read_text() == "content"
    path.unlink()
    with new_folder(path), atomic_folder(path) as temporary:
        (temporary / "x").touch()
    assert [each.name for each in Path(path).iterdir()] == ["x"]


def test_a_list_holds_no_name_with_a_line_break():
    require_lines(["a b", ""])
    with pytest.raises(DataError, match=r"'a\\nb' contains a line break"):
        require_lines(["a\nb"])

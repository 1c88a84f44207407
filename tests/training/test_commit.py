"""The commit that `run.json` and benchmarks name."""

import subprocess
from functools import partial

import pytest

from vidformers.training import commit
from vidformers.training.commit import git_commit

pytestmark = pytest.mark.quick


def test_changed_files_mark_the_commit_and_only_those_that_count(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "_ROOT", tmp_path)
    assert git_commit() is None
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    for name in ("code.py", "notes.txt"):
        (tmp_path / name).write_text("1\n")
    run(["git", "init"])
    assert git_commit() is None, "there is no commit yet"
    run(["git", "add", "."])
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "first"])
    clean = git_commit()
    assert clean == run(["git", "rev-parse", "HEAD"]).stdout.strip()
    (tmp_path / "notes.txt").write_text("2\n")
    (tmp_path / "untracked.txt").write_text("3\n")
    assert git_commit() == f"{clean}-dirty"
    assert git_commit("code.py", "untracked.txt") == clean

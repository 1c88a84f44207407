"""Paths in fields and flags: the home folder, and what is no path of this machine."""

import os

import pytest

from input_pipeline.errors import DataError
from input_pipeline.paths import local_path


@pytest.mark.quick
def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("--out", "~") == "/home/me"
    assert local_path("--out", "~/a~/b") == "/home/me/a~/b"
    assert local_path("--out", "~root/x") == f"{os.path.expanduser('~root')}/x"


@pytest.mark.quick
@pytest.mark.parametrize(
    "path", ["a", "./~a", "/a/b:c", "a b/c,d", "a\x1b[31m\n", "OWNER/NAME@v1", "train[:90%]", "c:d", "\udcff.mp4"]
)
def test_other_paths_stay_as_they_are(path):
    assert local_path("--out", path) == path


@pytest.mark.quick
@pytest.mark.parametrize(
    "path, words",
    [
        ("gs://bucket/run", "gs://"),
        ("gs:/bucket/run", "gs://"),
        ("S3://bucket", "s3://"),
        ("https://host/a.mp4", "https://"),
        ("hf+x.y-1://a", "hf[+]x.y-1://"),
        ("file:///data", "Leave out file://"),
        ("C:\\data", "path of Windows"),
        ("D:/data", "path of Windows"),
        ("\\\\server\\share", "Mount a share as a folder"),
        ("~no-such-user/x", "there is no user 'no-such-user'"),
        ("", "must be a path"),
        ("a\0b", "must be a path"),
    ],
)
def test_what_is_no_path_is_refused_in_one_sentence(path, words):
    with pytest.raises(DataError, match=rf"^--out=.*{words}.*\.?$"):
        local_path("--out", path)


@pytest.mark.quick
def test_an_unknown_home_folder_is_refused(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    with pytest.raises(DataError, match="the home folder of this user is not known"):
        local_path("data.root", "~/data")

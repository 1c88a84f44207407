"""The metrics of a checkpoint: a kill leaves no part of them, and what cannot be read is not called damaged."""

import errno
import itertools
import os
from functools import partial

import pytest

from vidformers.training import checkpoint_folder
from vidformers.training.checkpoint_folder import CheckpointFolder


class Killed(BaseException):
    """Raised in place of a system call of a process that is killed before it, and of all its later calls."""


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with a checkpoint that holds metrics and no arrays."""
    folder = CheckpointFolder(tmp_path)
    folder.saving_path(3).mkdir()
    folder.publish(3)
    folder.write_metrics(3, {"val/top1@1x1": 0.25})
    return folder


@pytest.mark.quick
def test_a_kill_while_metrics_are_added_damages_no_checkpoint(folder, monkeypatch):
    for calls in itertools.count():
        left = iter(range(calls))

        def killed(call, *arguments, left=left, **fields):
            if next(left, None) is None:
                raise Killed
            return call(*arguments, **fields)

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, partial(killed, getattr(os, name)))
            try:
                folder.write_metrics(3, {"val/top1@1x1": 0.25, "calls": calls})
                break
            except Killed:
                pass
        assert folder.find_damage(3) is None
        folder.write_metrics(3, {"val/top1@1x1": 0.25})
    assert calls > 5 and folder.read_metrics(3)[0]["calls"] == calls


@pytest.mark.quick
def test_metrics_that_cannot_be_read_are_no_damage(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "metrics")

    monkeypatch.setattr(checkpoint_folder, "read_json", refuse)
    with pytest.raises(PermissionError):
        folder.find_damage(3)

"""A program whose output goes to a file or a pipe says at least every half minute what it does."""

import threading
import time

import pytest

from vidformers import progress
from vidformers.progress import Bar, log, reported

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.02)


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def wait_for(capsys, words):
    """Waits until a line with these words is printed, and returns all lines until then."""
    found = []
    while not any(words in line for line in found):
        time.sleep(0.01)
        found += lines(capsys)
    return found


def test_a_long_block_says_what_it_does_until_it_ends(capsys):
    with reported("compiling"):
        assert wait_for(capsys, "compiling  0 s so far")
    assert not any(thread.name == "report" for thread in threading.enumerate())
    lines(capsys)
    time.sleep(0.1)
    assert not lines(capsys)


def test_the_innermost_block_speaks(capsys):
    with reported("outer"):
        with Bar("train", 10, 3) as bar:
            wait_for(capsys, "train 3/10")
            bar.advance(4)
            found = wait_for(capsys, "train 7/10")
        wait_for(capsys, "outer")
    assert not any("outer" in line for line in found)


def test_nothing_is_said_by_other_processes_or_where_lines_are_printed_anyhow(capsys, monkeypatch):
    with Bar("train", 10, shown=False), reported("hidden", shown=False):
        time.sleep(0.1)
    assert not lines(capsys)
    monkeypatch.setattr(progress, "SILENT_SECONDS", 30)
    with Bar("train", 10) as bar:
        bar.status("loss 1")
        log("a line")
    assert lines(capsys) == ["train 0/10  loss 1", "a line"]


def test_lines_end_with_the_time_that_is_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "SILENT_SECONDS", 30)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bar("train", 110, 10) as bar:
        bar.status("loss 3")
        for seconds, count in ((10, 2), (50, 48), (99, 49)):
            now[0] = seconds
            bar.advance(count)
            bar.status("loss 2")
    assert lines(capsys) == [
        "train 10/110  loss 3",
        "train 12/110  loss 2  about 8 min left",
        "train 60/110  loss 2  about 50 s left",
        "train 109/110  loss 2",
    ]

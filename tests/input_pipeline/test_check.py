"""Checking a data set: each broken video has a row with its error, even if it ends or blocks the decoding process."""

import csv
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from names import assert_harmless
from numbered import VFR, write

from input_pipeline import check
from input_pipeline.annotations import Record, read_manifest
from input_pipeline.errors import DataError
from input_pipeline.files import is_temporary
from input_pipeline.outputs import output_folder
from input_pipeline.text import printable

ROOT = Path(__file__).parents[2]
HALF = "\x1b[31m \u202e[red]$x$\t.mp4"  # a file name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five undamaged videos of three classes, one of them in both lists, and four broken ones."""
    root = tmp_path_factory.mktemp("data")
    write(root / "plain.mp4", count=10, audio=True)
    write(root / "vfr.mkv", count=20, pts=VFR)
    write(root / "turned.mp4", count=3, rotation=90)
    write(root / "with space, größe.webm", count=5, codec="libvpx-vp9", size=(32, 48))
    write(root / "other.avi", count=4, codec="mpeg4")
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("no video")
    (root / HALF).write_bytes((root / "plain.mp4").read_bytes()[:1000])
    os.mkfifo(root / "pipe.mp4")
    (root / "train.csv").write_text(
        'path,label\nplain.mp4,0\nvfr.mkv,0\nturned.mp4,0\n"with space, größe.webm",0\n'
        f'empty.mp4,0\ntext.mp4,1\n"{HALF}",2\n'
    )
    (root / "val.csv").write_text("path,label\nother.avi,2\nplain.mp4,0\npipe.mp4,1\n")
    return root


BROKEN = ["empty.mp4", "text.mp4", HALF, "pipe.mp4"]


def command(data, out, *more):
    return [
        f"--config={ROOT}/configs/demo.py:vit",
        "--config.data.source=csv",
        f"--config.data.root={data}",
        "--config.data.classes=none",
        "--config.data.num_classes=3",
        "--config.data.flip_swaps=()",
        f"--out={out}",
        *more,
    ]


def rows(out):
    with open(out / "report.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_the_report(data, tmp_path, capsys):
    assert check.main(command(data, tmp_path)) == 1
    report, printed = rows(tmp_path), capsys.readouterr().out
    assert list(next(iter(report.values()))) == list(check.COLUMNS)
    expected = {
        "plain.mp4": ("h264", "96", "64", "25.000", "10", "0.400", "0", "no", "yes", ""),
        "turned.mp4": ("h264", "64", "96", "25.000", "3", "0.120", "90", "no", "no", ""),
        "with space, größe.webm": ("vp9", "48", "32", "25.000", "5", "0.200", "0", "no", "no", ""),
        "other.avi": ("mpeg4", "96", "64", "25.000", "4", "0.160", "0", "no", "no", ""),
    }
    assert {name: tuple(report[name].values())[1:-1] for name in expected} == expected
    assert (report["vfr.mkv"]["variable_rate"], report["vfr.mkv"]["frames"]) == ("yes", "20")
    assert report.keys() == expected.keys() | {"vfr.mkv", *BROKEN}
    for name in BROKEN:
        assert " ".join(name.split()) in report[name]["error"] and printable(name) in printed
    assert_harmless(printed)
    assert "not a regular file" in report["pipe.mp4"]["error"]
    assert (tmp_path / "exclude.txt").read_text().splitlines() == BROKEN
    assert "4 of 9 videos are broken" in printed
    assert "train: 7 videos of 3 classes. The largest class has 5, and the smallest 1." in printed
    assert "videos: 0 5, 1 1, 2 1." in printed
    assert not [path for path in tmp_path.iterdir() if is_temporary(path.name)]


def test_the_videos_of_exclude_are_left_out_of_a_run(data, tmp_path):
    (tmp_path / "exclude.txt").write_text("\n".join(BROKEN) + "\n")
    exclude = str(tmp_path / "exclude.txt")
    options = dict(root=str(data), num_classes=3)
    kept = read_manifest("train.csv", exclude=exclude, complete=False, **options)
    assert [os.path.basename(record.path) for record in kept.records] == [
        "plain.mp4",
        "vfr.mkv",
        "turned.mp4",
        "with space, größe.webm",
    ]
    assert kept.excluded == ("empty.mp4", "text.mp4", HALF) and kept.missing == ()
    assert kept.digest != read_manifest("train.csv", **options).digest
    with pytest.raises(DataError, match=r"none\.txt \(data\.exclude\) cannot be read"):
        read_manifest("train.csv", exclude=str(data / "none.txt"), **options)
    (tmp_path / "all.txt").write_text("other.avi\nplain.mp4\npipe.mp4\n")
    with pytest.raises(DataError, match="all of its 3 videos are missing or excluded"):
        read_manifest("val.csv", exclude=str(tmp_path / "all.txt"), **options)


def test_a_check_that_was_killed_continues(data, tmp_path, capsys):
    report = tmp_path / "report.csv"
    head = ",".join(check.COLUMNS[:-1])  # as of versions before the remarks
    # A report after a kill: an undamaged video, a video of another list, a broken video, and an incomplete row.
    report.write_text(
        f"{head}\nplain.mp4,old,1,2,3,4,5,0,no,no,\nelsewhere.mp4,,,,,,,,,,gone\n"
        "text.mp4,,,,,,,,,,broken then\nvfr.mkv,h26"
    )
    assert check.main(command(data, tmp_path)) == 1
    report_rows = rows(tmp_path)
    assert "1 of 9 videos are listed without an error in" in capsys.readouterr().out
    assert report_rows["plain.mp4"]["codec"] == "old"  # not examined again
    assert report_rows["elsewhere.mp4"]["error"] == "gone"
    assert report_rows["text.mp4"]["error"] != "broken then"  # it may have been repaired
    assert report_rows["vfr.mkv"]["codec"] == "h264"
    assert len(report.read_text().splitlines()) == 1 + 10
    assert (tmp_path / "exclude.txt").read_text().splitlines() == BROKEN


def test_a_data_set_without_broken_videos(data, tmp_path, capsys):
    (tmp_path / "train.csv").write_text(f"{data}/plain.mp4,0\n{data}/turned.mp4,1\n")
    (tmp_path / "val.csv").write_text(f"{data}/other.avi,0\n")
    flags = command(tmp_path, tmp_path / "out", "--config.data.num_classes=2", "--workers=1")
    assert check.main(flags) == 0
    assert "All 3 videos can be decoded" in capsys.readouterr().out
    assert (tmp_path / "out" / "exclude.txt").read_text() == ""


@pytest.mark.quick
def test_a_file_that_was_removed_during_the_check_is_broken(tmp_path):
    row = check._examine(Record(0, str(tmp_path / "a.mp4"), 0, 1), lambda: None, frame_rate=30)
    assert "No such file" in row["error"]


@pytest.mark.quick
def test_remarks_are_in_the_report_and_printed(tmp_path, capsys):
    """A recording that was paused for a minute; its frames are sampled by number. Others have no remark."""
    paused, plain = tmp_path / "paused.mkv", tmp_path / "plain.mkv"
    write(paused, count=20, pts=[40 * n + 60000 * (n > 5) for n in range(20)])
    write(plain, count=3)
    records = {path.name: Record(n, str(path), 0, n) for n, path in enumerate((paused, plain))}
    report = tmp_path / "report.csv"
    assert not check.check(records, report, 1, functools.partial(check._examine, frame_rate=30))
    check._print_remarks(report)
    found = rows(tmp_path)
    assert found["plain.mkv"]["remarks"] == ""
    assert "1 of 20 frames fills 99% of the duration." in found["paused.mkv"]["remarks"]
    printed = capsys.readouterr().out
    assert f"  paused.mkv: {found['paused.mkv']['remarks']}\n1 videos have remarks" in printed


def misbehave(record, beat):
    """Does what the path of the record names."""
    if record.path == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif record.path == "exit":
        os._exit(3)
    elif record.path == "hang":
        ctypes.PyDLL(None).pause()  # in C, while it holds the interpreter's lock
    elif record.path == "slow":
        for _ in range(8):
            beat()
            time.sleep(0.1)
    return {"codec": record.path}


def test_videos_that_end_or_hang_their_process(tmp_path):
    names = ["fine", "crash", "slow", "hang", "exit", "last"]
    records = {name: Record(i, name, 0, i) for i, name in enumerate(names)}
    broken = check.check(records, tmp_path / "report.csv", 2, misbehave, hang_seconds=0.5)
    assert broken == {
        "crash": "The process that decoded the video ended with SIGSEGV.",
        "hang": "Decoding hangs for over 0.5 s.",
        "exit": "The process that decoded the video ended with exit status 3.",
    }
    report = rows(tmp_path)
    assert report.keys() == set(names)
    assert {name for name in names if report[name]["codec"] == name} == {"fine", "slow", "last"}


@pytest.mark.quick
@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--workers=0"], "--workers=0 must be a whole number of at least 1."),
        (["--worker=2"], "--worker is not a flag; did you mean --workers?"),
        (["--data.root=x"], "--data.root is not a flag; did you mean --config.data.root?"),
        (["--speed=2"], "--speed is not a flag; --help shows them."),
        (["--config.data.train=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_are_one_sentence(data, tmp_path, flags, sentence, capsys):
    from command import one_sentence  # imports jax, which would slow down the processes that import this module

    assert check.main(command(data, tmp_path, *flags)) == 2
    assert sentence in one_sentence(capsys.readouterr().err)


def test_a_report_csv_of_another_kind_is_kept(data, tmp_path, capsys):
    (tmp_path / "report.csv").write_text("my,own\n1,2\n")
    assert check.main(command(data, tmp_path)) == 2
    assert "is not a report of this command" in capsys.readouterr().err
    assert (tmp_path / "report.csv").read_text() == "my,own\n1,2\n"
    with pytest.raises(DataError):
        check.check({}, tmp_path / "report.csv", 1, misbehave)


def test_an_interrupt_loses_nothing(data, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "input_pipeline.check", *command(data, tmp_path), "--workers=1"],
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 60
    while not ((tmp_path / "report.csv").exists() and len((tmp_path / "report.csv").read_text().splitlines()) > 1):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (1, 130)  # it may have finished before
    assert "Traceback" not in error
    before = len(rows(tmp_path))
    assert before >= 1
    assert check.main(command(data, tmp_path)) == 1
    assert len(rows(tmp_path)) == 9


@pytest.mark.quick
def test_the_output_is_known_before_the_check(data, tmp_path, capsys):
    """A report that another check writes, a folder that cannot be one, and a name that the lists cannot hold."""
    from command import one_sentence

    (tmp_path / "file").touch()
    with output_folder(tmp_path / "out"):
        for out, words in (("out", "is being written by another command"), ("file/x", "file is not a folder")):
            assert check.main(command(data, tmp_path / out)) == 2
            assert words in one_sentence(capsys.readouterr().err)
    (tmp_path / "train.csv").write_text('"a\nb.mp4",0\n')
    (tmp_path / "a\nb.mp4").touch()
    flags = [f"--config.data.{split}={tmp_path}/train.csv" for split in ("train", "val")]
    assert check.main([*command(tmp_path, tmp_path / "out"), *flags, "--config.data.num_classes=1"]) == 2
    assert r"'a\nb.mp4' contains a line break" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()

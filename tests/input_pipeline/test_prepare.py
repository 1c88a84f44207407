"""Every video is prepared once, and a run that was killed ends as one that never was."""

import csv
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numbered import VFR, write

from input_pipeline import prepare, transcode
from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.shards import read_rows, read_video
from input_pipeline.transcode import Encoding, Task

REPOSITORY = Path(__file__).parents[2]
VIDEOS, KILLS = 24, 4  # with 200 videos and 10 kills it takes some minutes
TRAIN, BROKEN = VIDEOS * 3 // 4, 7
NAMES = [f"clip {number:03d}.{('mp4', 'mkv')[number % 2]}" for number in range(VIDEOS)]
PIECES = -(-TRAIN // 2) - (TRAIN - VIDEOS) // 2


def arguments(root, out, *more):
    return [
        "--config=configs/vit_b16.py",
        f"--config.data.root={root}",
        "--config.data.num_classes=3",
        f"--out={out}",
        "--clips_per_shard=2",
        *more,
    ]


def start(*argv, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "input_pipeline.prepare", *argv],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def command(*argv, code=0, **more):
    """Standard output, or the sentence on standard error where a mistake is expected."""
    process = start(*argv, **more)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, f"{out}\n{err}"
    if code:
        assert err.startswith("vidformers: ") and err.endswith(".\n") and err.count("\n") == 1, err
    return err if code else out


def shard(index):
    return f"train-{index:05d}-of-{-(-TRAIN // 2):05d}.array_record"


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Videos of several kinds and numbers of frames, one of them broken."""
    root = tmp_path_factory.mktemp("source")
    rows = []
    for number, name in enumerate(NAMES):
        kinds = dict(), dict(audio=True), dict(rotation=90), dict(pts=VFR), dict(gop=3, options={"bf": "2"})
        if number == BROKEN:
            (root / name).write_bytes(b"no video")
        else:
            write(root / name, count=number % 60 + 1, **kinds[number % 5])
        rows.append((name, number % 3))
    for split, part in (("train", rows[:TRAIN]), ("val", rows[TRAIN:])):
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *part])
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, command(*arguments(source, out))


def test_every_video_is_there_once_with_its_label_and_frames(source, prepared):
    out, printed = prepared
    found = {split: read_rows(str(out / f"{split}.json")) for split in ("train", "val")}
    names = [row["name"] for split in found for row in found[split]]
    assert names == NAMES[:BROKEN] + NAMES[BROKEN + 1 :]
    for row in found["train"] + found["val"]:
        number, data = NAMES.index(row["name"]), read_video(str(out / row["shard"]), row["position"])
        assert row["label"] == number % 3
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        video = Video(data)
        assert len(video.times) == row["frames"] and video.frames([0]).shape[1:3] == (row["height"], row["width"])
        if number % 5 != 3:  # those of a variable rate show some frames twice
            assert row["frames"] == number % 60 + 1
    with open(out / "excluded.csv", newline="") as file:
        ((split, path, reason),) = list(csv.reader(file))[1:]
    assert (split, path) == ("train", str(source / NAMES[BROKEN])) and path in reason
    assert f"train: {TRAIN - 1} clips" in printed and "1 videos left out" in printed and "clips/s" in printed


def test_what_lies_beside_the_shards(source, prepared):
    out, _ = prepared
    assert (out / "classes.txt").read_text() == "0\n1\n2\n"
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in sums} == sums
    assert {path.name for path in out.iterdir()} - set(sums) - {"SHA256SUMS", "prepare.json"} == {
        path.name for path in out.glob("*.jsonl")
    }
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["train"]["clips"], summary["train"]["excluded"], summary["val"]["clips"]) == (
        TRAIN - 1,
        1,
        VIDEOS - TRAIN,
    )
    assert summary["val"]["source_bytes"] == sum((source / name).stat().st_size for name in NAMES[TRAIN:])
    assert summary["val"]["bytes"] == sum(path.stat().st_size for path in out.glob("val-*.array_record"))
    for name in set(sums) - {"excluded.csv"}:  # which names the files that the user should look at
        assert str(source).encode() not in (out / name).read_bytes(), name


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(source, prepared, tmp_path):
    out, rng, cut = tmp_path / "out", np.random.default_rng(0), 0
    for _ in range(KILLS):
        process = start(*arguments(source, out), start_new_session=True)
        done = len(list(out.glob("*.jsonl")))
        wanted, deadline = done + rng.integers(0, 3), time.monotonic() + 60
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and not (len(list(out.glob("*.jsonl"))) >= wanted and list(out.glob("*-of-*")))
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate(timeout=20)  # returns when the workers, who share its standard output, are gone too
        cut += process.returncode == -signal.SIGKILL
    assert cut > 1  # the last may have come too late
    (out / f".{shard(0)}.0.tmp").write_bytes(b"half")
    command(*arguments(source, out))
    assert content(out) == content(prepared[0])


def test_parts_make_the_whole(source, prepared, tmp_path):
    out = tmp_path / "out"
    command(*arguments(source, out, "--shard=1/2", "--workers=1"))
    err = command(*arguments(source, out, "--merge=true"), code=2)
    left = -(-PIECES // 2)
    assert f"{left} of {PIECES} pieces, {shard(0)[:20]}, " in err and f"and {left - 5} more" in err
    printed = command(*arguments(source, out, "--shard=0/2", "--workers=1"))
    assert f"0 of {PIECES} are missing" in printed
    assert not (out / "train.json").exists()
    command(*arguments(source, out, "--merge=true"))
    assert content(out) == content(prepared[0])


def test_a_second_run_changes_nothing(source, prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record")}
    assert prepare.main(arguments(source, tmp_path / "out")) == 0
    assert content(tmp_path / "out") == content(prepared[0])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--gop=8", "--gop 4, which is 8 now"),
        ("--short_side=128", "--short_side 256, which is 128 now"),
        ("--clips_per_shard=3", "--clips_per_shard 2, which is 3 now"),
        ("--crf=20", "--crf 23"),
        ("--config.data.val=train.csv", "the list data.val"),
        ("--config.data.classes=names.txt", "the classes"),
    ],
)
def test_other_options_are_refused(source, prepared, capsys, flag, sentence):
    (source / "names.txt").write_text("x\ny\nz\n")
    before = content(prepared[0])
    assert prepare.main([*arguments(source, prepared[0]), flag]) == 2
    assert sentence in capsys.readouterr().err and content(prepared[0]) == before


@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--out=", "--out=DIR is missing"),
        ("--gop=0", "--gop must be from 1"),
        ("--gop=x", "--gop=x must be a whole"),
        ("--workers=0", "--workers=0"),
        ("--shard=2/2", "--shard=2/2"),
        ("--shard=a", "--shard=a"),
        ("--merge=yes", "--merge=yes"),
        ("--runner=Local", "--runner=Local"),
        ("--clips_per_shard=0", "clips_per_shard"),
        ("--colour=1", "--colour"),
        ("--config.data.train=none.csv", "none.csv"),
    ],
)
def test_mistakes_are_one_sentence(source, tmp_path, capsys, flag, sentence):
    assert prepare.main([*arguments(source, tmp_path / "out"), flag]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_and_kept(source, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare.main(arguments(source, tmp_path)) == 2
    assert "something else" in capsys.readouterr().err
    assert prepare.main(arguments(source, tmp_path / "notes.txt")) == 2
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_a_shard_that_was_cut_short_is_not_merged(source, prepared, tmp_path, capsys):
    shutil.copytree(prepared[0], tmp_path / "out")
    os.truncate(tmp_path / "out" / shard(3), 1000)
    assert prepare.main(arguments(source, tmp_path / "out", "--merge=true")) == 2
    assert shard(3) in capsys.readouterr().err


def test_a_file_that_the_disk_refuses_ends_with_a_sentence(source, tmp_path):
    out = tmp_path / "out"
    err = command(
        *arguments(source, out), code=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    )
    assert "File too large" in err and shard(0) in err
    assert set(content(out)) == {"prepare.json"}


def test_a_full_disk_ends_with_a_sentence(source, prepared, tmp_path):
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=500k none {disk}"
    if not shutil.which("unshare") or subprocess.run([*own, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted without privileges here")
    argv = arguments(source, disk / "out")
    script = (
        f'{mount} && {sys.executable} -m input_pipeline.prepare "$@"; code=$?; cp -r {disk}/out {tmp_path}; exit $code'
    )
    done = subprocess.run([*own, "sh", "-c", script, "prepare", *argv], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    found, whole = content(tmp_path / "out"), content(prepared[0])
    assert not [name for name in found if name.startswith(".")] and shard(0).replace("array_record", "jsonl") in found
    assert all(data == whole[name] for name, data in found.items()) and "train.json" not in found


def end_the_process(task):
    if task.record.name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"name": task.record.name}, None


def test_a_video_that_ends_its_process_is_left_out(monkeypatch):
    monkeypatch.setattr(transcode, "run", end_the_process)
    names = ["a", "b", "deadly 1", "c", "d", "deadly 2"]
    tasks = [Task(Record(0, name, 0, 1, name=name), Encoding()) for name in names]
    found = [row for row, _ in prepare._results(tasks, 2)]
    assert [row["name"] for row in found] == names
    assert [row["name"] for row in found if "process" in row.get("reason", "")] == ["deadly 1", "deadly 2"]


def test_beam_makes_the_same(source, prepared, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam (requirements-beam.txt) is not installed")
    command(*arguments(source, tmp_path / "out", "--runner=DirectRunner", "--workers=2"))
    assert content(tmp_path / "out") == content(prepared[0])


def test_missing_beam_is_a_sentence(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert prepare.main(arguments(source, tmp_path / "out", "--runner=FlinkRunner")) == 2
    assert "--runner=FlinkRunner needs Apache Beam: pip install" in capsys.readouterr().err

"""Every video is prepared exactly once, and a run that was killed ends with the same files as one that was not."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from names import HOSTILE_FILES
from numbered import VFR, write

from input_pipeline import check, prepare, transcode
from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.outputs import locked, output_folder
from input_pipeline.shards import read_rows, read_video
from input_pipeline.transcode import Encoding, Task

REPOSITORY = Path(__file__).parents[2]
VIDEOS = 12
TRAIN, BROKEN = VIDEOS * 3 // 4, 7
_ODD = [name for what, name in HOSTILE_FILES.items() if what != "no UTF-8"]  # a list is UTF-8
NAMES = [f"{number:03d} {_ODD[number]}.{('mp4', 'mkv')[number % 2]}" for number in range(VIDEOS)]
TRAIN_SHARDS = -(-TRAIN // 2)
SHARDS = TRAIN_SHARDS - (TRAIN - VIDEOS) // 2
# Runs the command, and kills it by SIGKILL in place of the rename of this number.
KILLED_AT_RENAME = """
import os, pathlib, signal, sys
from input_pipeline import prepare
rename, count = pathlib.Path.replace, iter(range(1000))
def rename_or_kill(*paths):
    if next(count) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*paths)
pathlib.Path.replace = rename_or_kill
prepare.main(sys.argv[2:])
"""
# Runs the command, and sends the first signal to it and its workers, as a scheduler does, when a shard is written.
STOPPED_AFTER_SHARD = """
import os, sys
from input_pipeline import commands, prepare, shard_plan
write, number = shard_plan.run_job, int(sys.argv.pop(1))
shard_plan.run_job = lambda *arguments: (write(*arguments), os.killpg(0, number))
commands.run_program(prepare.main)
"""


def arguments(root, out, *more):
    return [
        "--config=configs/vit_b16.py",
        f"--config.data.root={root}",
        "--config.data.num_classes=3",
        f"--out={out}",
        "--clips_per_shard=2",
        *more,
    ]


def start(*argv, program=("-m", "input_pipeline.prepare"), wrapper=(), **options):
    return subprocess.Popen(
        [*wrapper, sys.executable, *program, *argv],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(*argv):
    """Returns the standard output of the command, which runs in this process and must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert prepare.main(list(argv)) == 0
    return printed.getvalue()


def one_sentence(error):
    import command  # imports jax, which would slow down the processes that import this module

    return command.one_sentence(error)


def shard(index):
    return f"train-{index:05d}-of-{TRAIN_SHARDS:05d}.array_record"


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


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
            write(root / name, count=number + 1, **kinds[number % 5])
        rows.append((name, number % 3))
    for split, split_rows in (("train", rows[:TRAIN]), ("val", rows[TRAIN:])):
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *split_rows])
    (root / "names.txt").write_text("x\ny\nz\n")
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """The folder that an undisturbed run has written, and its standard output."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    process = start(*arguments(source, out))
    printed, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    return out, printed


def test_every_video_is_there_once_with_its_label_and_frames(source, prepared):
    out, printed = prepared
    rows = read_rows(str(out / "train.json")) + read_rows(str(out / "val.json"))
    assert [row["name"] for row in rows] == NAMES[:BROKEN] + NAMES[BROKEN + 1 :]
    for row in rows:
        number, data = NAMES.index(row["name"]), read_video(str(out / row["shard"]), row["position"])
        assert row["label"] == number % 3
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        video = Video(data)
        assert len(video.times) == row["frames"] and video.frames([0]).shape[1:3] == (row["height"], row["width"])
        if number % 5 != 3:  # a clip of a variable rate shows some frames twice
            assert row["frames"] == number + 1
    with open(out / "excluded.csv", newline="") as file:
        ((split, path, reason),) = list(csv.reader(file))[1:]
    assert (split, path) == ("train", str(source / NAMES[BROKEN])) and path in reason
    assert f"train: {TRAIN - 1} clips" in printed and "1 videos left out" in printed and "clips/s" in printed


def test_recordings_that_were_paused_are_named(tmp_path):
    """Six of them, with more than half of the duration in one frame. The summary names all, the output five."""
    for number in range(6):
        write(tmp_path / f"{number}.mkv", count=6, pts=[0, 40, 80, 9000, 9040, 9080])
    write(tmp_path / "plain.mp4", count=3)
    (tmp_path / "train.csv").write_text("".join(f"{number}.mkv,{number % 3}\n" for number in range(6)))
    (tmp_path / "val.csv").write_text("plain.mp4,0\n")
    printed = run(*arguments(tmp_path, tmp_path / "out", "--workers=1"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    noted = summary["train"]["remarks"]
    assert [path for path, _ in noted] == [str(tmp_path / f"{number}.mkv") for number in range(6)]
    assert summary["val"]["remarks"] == []
    assert all(f"  {path}: 1 of 6 frames fills " in printed for path, _ in noted[:5]) and noted[5][0] not in printed
    assert "1 more videos have remarks, see" in printed


def test_the_lists_checksums_and_summary(source, prepared):
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
    for name in set(sums) - {"excluded.csv"}:  # which gives the paths of the videos left out
        assert str(source).encode() not in (out / name).read_bytes(), name


def kill_after_shards(process, out, count, seconds):
    """Kills the command `seconds` after `count` shards are done. Returns when its workers have ended, too."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and len(list(out.glob("*.jsonl"))) < count:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.communicate(timeout=20)  # waits for the workers, which share its standard output


def test_killed_at_any_moment_it_ends_with_the_same_files(source, prepared, tmp_path):
    out = tmp_path / "out"
    argv, program = arguments(source, out), ("-c", KILLED_AT_RENAME)

    # The first shard is there, but its metadata are not: rename 0 is of prepare.json, 1 of the shard.
    process = start("2", *argv, program=program)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    names = set(content(out)) - {".lock"}
    assert {"prepare.json", shard(0)} < names and len(names) == 3  # the third is the temporary file of the metadata

    # While later videos are transcoded.
    process = start(*argv, start_new_session=True)
    kill_after_shards(process, out, 2, 0.02)
    assert process.returncode in (-signal.SIGKILL, 0)
    done = len(list(out.glob("*.jsonl")))
    assert 2 <= done <= SHARDS

    # While the lists are written: train.json is there, val.json is not.
    (out / "SHA256SUMS").unlink(missing_ok=True)  # on a busy machine the kill before may have come too late
    process = start(str(2 * (SHARDS - done) + 1), *argv, program=program)
    process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL
    assert (out / "train.json").exists() and not (out / "SHA256SUMS").exists()

    (out / f".{shard(0)}.0.tmp").write_bytes(b"half")
    run(*argv)
    assert content(out) == content(prepared[0])


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_first_signal_ends_it_with_one_sentence_and_leaves_no_worker(source, tmp_path, number):
    out, program = tmp_path / "out", ("-c", STOPPED_AFTER_SHARD, str(int(number)))
    process = start(*arguments(source, out), program=program, start_new_session=True)
    printed, error = process.communicate(timeout=100)  # waits for the workers, which share its standard output
    assert (process.returncode, printed) == (128 + number, "")
    assert error == "Interrupted. Finished work is kept; the same command continues it.\n"
    assert set(content(out)) == {"prepare.json", shard(0), shard(0).replace(".array_record", ".jsonl")}


def test_the_slices_of_a_job_array_give_the_same_files(source, prepared, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare.main(arguments(source, out, "--merge=true")) == 2
    error = one_sentence(capsys.readouterr().err)
    assert f"{SHARDS} of {SHARDS} shards, {shard(0)[:20]}, " in error and f"and {SHARDS - 5} more" in error
    printed = run(*arguments(source, out, "--shard=1/2", "--workers=1"))
    assert f"{-(-SHARDS // 2)} of {SHARDS} are missing" in printed
    assert prepare.main(arguments(source, out, "--merge=true")) == 2
    error = one_sentence(capsys.readouterr().err)
    assert f"{-(-SHARDS // 2)} of {SHARDS} shards, {shard(0)[:20]}, " in error and "more" not in error
    with output_folder(out, shared=True), locked(out / ".shard-0-of-2.lock"):  # as another part of the job
        for more in ((), ("--merge=true",), ("--shard=0/2",)):
            assert prepare.main(arguments(source, out, *more)) == 2
            error = one_sentence(capsys.readouterr().err)
            assert f"--out={out} is being written by another command" in error
        assert prepare.main(arguments(source, out, "--shard=1/2")) == 0
    (out / ".shard-0-of-2.lock").touch()  # as a part that was killed leaves it
    printed = run(*arguments(source, out, "--shard=0/2", "--workers=1"))
    assert f"0 of {SHARDS} are missing" in printed
    assert not (out / "train.json").exists()
    run(*arguments(source, out, "--merge=true"))
    assert content(out) == content(prepared[0])


def test_a_second_run_changes_nothing(source, prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array_record")}
    run(*arguments(source, tmp_path / "out"))
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
    before = content(prepared[0])
    assert prepare.main([*arguments(source, prepared[0]), flag]) == 2
    assert sentence in capsys.readouterr().err and content(prepared[0]) == before


@pytest.mark.quick
@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--out=", "--out= has no value"),
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
    assert sentence in one_sentence(capsys.readouterr().err) and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_and_kept(source, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare.main(arguments(source, tmp_path)) == 2
    assert "contains other files than prepared shards" in capsys.readouterr().err
    assert prepare.main(arguments(source, tmp_path / "notes.txt")) == 2
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_a_shard_that_was_cut_short_is_not_merged(source, prepared, tmp_path, capsys):
    shutil.copytree(prepared[0], tmp_path / "out")
    os.truncate(tmp_path / "out" / shard(3), 1000)
    assert prepare.main(arguments(source, tmp_path / "out", "--merge=true")) == 2
    assert shard(3) in capsys.readouterr().err


def test_damaged_metadata_of_a_shard_are_not_merged(source, prepared, tmp_path, capsys):
    shutil.copytree(prepared[0], tmp_path / "out")
    path = (tmp_path / "out" / shard(3)).with_suffix(".jsonl")
    for content in (b"\xff", b"[]\n", b'{"bytes": 1'):
        path.write_bytes(content)
        assert prepare.main(arguments(source, tmp_path / "out", "--merge=true")) == 2
        assert f"{path} is damaged. Remove this file" in capsys.readouterr().err


def test_the_check_compares_clips_and_lists_with_their_checksums(prepared, tmp_path, capsys):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    first, second, *_ = read_rows(str(out / "train.json"))
    text = (out / "train.json").read_text()
    (out / "train.json").write_text(text.replace(first["sha256"], second["sha256"]))
    command = ["--config=configs/vit_b16.py", f"--config.data.root={out}", "--config.data.source=shards"]
    assert check.main([*command, "--config.data.num_classes=3", f"--out={tmp_path}/check"]) == 1
    printed = capsys.readouterr().out
    assert "train.json differs from its SHA-256 in SHA256SUMS." in printed
    assert f"1 of {VIDEOS - 1} videos are broken" in printed and "the clip differs from the SHA-256" in printed


def test_a_file_that_the_disk_refuses_ends_with_a_sentence(source, tmp_path):
    out = tmp_path / "out"
    process = start(*arguments(source, out), wrapper=("prlimit", "--fsize=40000"))
    error = process.communicate(timeout=100)[1]
    assert process.returncode == 2
    assert f"{out / shard(0)} cannot be read or written: File too large." in one_sentence(error)
    assert set(content(out)) == {"prepare.json"}


def test_a_full_disk_ends_with_a_sentence(source, prepared, tmp_path):
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=500k none {disk}"
    if not shutil.which("unshare") or subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted without privileges here")
    argv = arguments(source, disk / "out")
    script = (
        f'{mount} && {sys.executable} -m input_pipeline.prepare "$@"; code=$?; cp -r {disk}/out {tmp_path}; exit $code'
    )
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "prepare", *argv], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    written, complete = content(tmp_path / "out"), content(prepared[0])
    assert not [name for name in written if name.startswith(".")]
    assert shard(0).replace("array_record", "jsonl") in written
    assert all(data == complete[name] for name, data in written.items()) and "train.json" not in written


def end_the_process(task):
    if task.record.name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return {"name": task.record.name}, None


def test_a_video_that_ends_its_process_is_left_out(monkeypatch):
    monkeypatch.setattr(transcode, "run", end_the_process)
    names = ["a", "b", "deadly 1", "c", "d", "deadly 2"]
    tasks = [Task(Record(0, name, 0, 1, name=name), Encoding()) for name in names]
    rows = [row for row, _ in prepare._results(tasks, 2)]
    assert [row["name"] for row in rows] == names
    assert [row["name"] for row in rows if "process" in row.get("reason", "")] == ["deadly 1", "deadly 2"]


def test_beam_writes_the_same_files(source, prepared, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam (requirements-beam.txt) is not installed")
    run(*arguments(source, tmp_path / "out", "--runner=DirectRunner", "--workers=2"))
    assert content(tmp_path / "out") == content(prepared[0])


def test_without_beam_an_error_says_how_to_install_it(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert prepare.main(arguments(source, tmp_path / "out", "--runner=FlinkRunner")) == 2
    assert "--runner=FlinkRunner needs Apache Beam: pip install" in capsys.readouterr().err

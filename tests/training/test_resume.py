"""A run that is killed, stopped or cannot save, and is started again, computes what an uninterrupted run computes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from functools import partial

import jax
import numpy as np
import pytest
from command import BAD, CACHE, Run, arguments, assert_same_run, checkpoint, flip_a_bit, one_sentence, render, rows
from tiny import QUICK

import main
from configs.loading import load, override
from input_pipeline import DataError, Pipeline
from vidformers import build
from vidformers.errors import ConfigError
from vidformers.models.summary import summarise
from vidformers.parallel import memory
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.setup import compile_step, compile_within_memory, set_up
from vidformers.training.workdir import differences_from_stored_run, workdir_lock


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("resume") / "clips")


# Assigned in the process of a run: a step takes 0.1 s longer, so that a signal sent after the first rows arrives before
# the last step also on a busy machine.
SLOW_STEPS = (
    "vidformers.training.loop.put_batch = (lambda put: lambda *batch: __import__('time').sleep(0.1) or put(*batch))("
    "vidformers.training.loop.put_batch)",
)


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """Returns the folder of a run that was never interrupted, and its output."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    return workdir, Run(arguments(data, workdir)).finish()


@pytest.fixture(scope="module")
def halfway(reference, data, tmp_path_factory):
    """Returns the folder of a run that SIGTERM stopped between two steps."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    run = Run(arguments(data, workdir), patches=SLOW_STEPS)
    run.wait_until(lambda: lines(workdir))
    run.send(signal.SIGTERM)
    status, out, err = run.wait()
    assert (status, err) == (128 + signal.SIGTERM, "")
    assert "which is saved: the same command continues." in out.splitlines()[-1]
    return workdir


def lines(workdir):
    """Returns the lines of metrics.jsonl, [] if there is no file."""
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def in_checkpoints(workdir):
    """Returns the names in the folder of checkpoints, unfinished saves included."""
    return sorted(path.name for path in (workdir / "checkpoints").glob("*"))


def saved_steps(workdir):
    return sorted(int(name) for name in in_checkpoints(workdir) if name.isdigit())


def unfinished_saves(workdir):
    return [name for name in in_checkpoints(workdir) if not name.isdigit()]


def kill_when(condition, command):
    run = Run(command)
    run.wait_until(condition)
    run.kill()


def test_a_run_killed_while_it_compiles_trains_and_evaluates_continues_bit_for_bit(reference, data, tmp_path):
    command = arguments(data, tmp_path)
    kill_when((tmp_path / "checkpoints").is_dir, command)  # compiling
    assert not lines(tmp_path)
    late_save = arguments(data, tmp_path, {"checkpoint.every_steps": 9})
    kill_when(lambda: lines(tmp_path) and not in_checkpoints(tmp_path), late_save)  # before the first save
    assert not saved_steps(tmp_path)
    kill_when(lambda: any('"step": 4' in line for line in lines(tmp_path)), command)  # evaluating
    assert not any("val/" in line for line in lines(tmp_path))
    (tmp_path / ".run.json.0000.tmp").touch()  # left by an atomic write that was killed
    with open(tmp_path / "metrics.jsonl", "a") as file:  # rows after the last save, of which one is cut short
        file.write('{"step": 5, "time": 1.0, "train/loss": 2.0}\n{"step": 6, "ti')
    Run(command).finish()
    assert_same_run(tmp_path, reference[0])
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_a_run_with_workers_stopped_killed_while_it_saves_and_damaged_continues_bit_for_bit(reference, data, tmp_path):
    def command(workers, every_steps=3):
        # Each protocol of evaluations starts workers, which takes long: there is only the last evaluation.
        fields = {"data.workers": workers, "train.eval_every_steps": "none", "checkpoint.every_steps": every_steps}
        return arguments(data, tmp_path, fields)

    run = Run(command(workers=1), patches=SLOW_STEPS)
    run.wait_until(lambda: lines(tmp_path))
    run.send(signal.SIGINT, group=True)
    status, out, err = run.wait()
    assert (status, err) == (128 + signal.SIGINT, "") and "is saved: the same command continues." in out
    for _ in range(5):  # a save may finish after the condition was met and before the kill
        kill_when(lambda: unfinished_saves(tmp_path) and saved_steps(tmp_path)[1:], command(workers=2, every_steps=1))
        if unfinished_saves(tmp_path):
            break
    assert unfinished_saves(tmp_path)
    before, newest = saved_steps(tmp_path)[-2:]
    files = [path for path in (tmp_path / "checkpoints" / str(newest)).rglob("*") if path.is_file()]
    flip_a_bit(max(files, key=lambda path: path.stat().st_size))
    assert f"Continues {tmp_path} at step {before}" in Run(command(workers=2)).finish()
    assert_same_run(tmp_path, reference[0], evaluations=False)
    assert f"{newest}.damaged" in in_checkpoints(tmp_path)


def test_a_stopped_run_continues_bit_for_bit_and_replaces_damaged_programs_in_the_cache(
    halfway, reference, data, tmp_path
):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    assert 0 < saved_steps(workdir)[-1] < 12
    half_sizes = {path: path.stat().st_size // 2 for path in (CACHE / "vidformers" / "compiled").glob("jit_step*cache")}
    for path, size in half_sizes.items():
        os.truncate(path, size)
    assert "Continues" in Run(arguments(data, workdir)).finish()
    assert_same_run(workdir, reference[0])
    assert any(path.exists() and path.stat().st_size > size for path, size in half_sizes.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_loads_ends_it_with_a_message(number, data, tmp_path):
    run = Run(arguments(data, tmp_path))
    run.wait_until((tmp_path / "checkpoints").is_dir)
    run.send(number, group=True)
    status, out, err = run.wait()
    assert status == 128 + number and "Traceback" not in err and (out + err).count("\n") == 1


def test_another_number_of_devices_continues_to_rounding(halfway, reference, data, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    Run(arguments(data, workdir, {"mesh.fsdp": 2, "model.remat": "full"}), devices=4).finish()
    for row, expected in zip(rows(workdir), rows(reference[0]), strict=True):
        assert row.keys() == expected.keys()
        for name in row:
            if "top" not in name:
                assert row[name] == pytest.approx(expected[name], rel=1e-3), name


def test_a_finished_run_that_is_started_again_changes_no_metric(reference, data, tmp_path, capsys):
    workdir = shutil.copytree(reference[0], tmp_path / "run")
    assert main.main(["main.py", *arguments(data, workdir)]) == 0
    assert f"The training in {workdir} is finished, at step" in capsys.readouterr().out
    assert_same_run(workdir, reference[0])


@pytest.mark.quick
def test_the_temporary_files_of_killed_processes_are_removed_under_the_lock(tmp_path):
    (tmp_path / ".run.json.0123abcd.tmp").write_text("half of it")
    with workdir_lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(DataError, match="is in use by a run that is still alive"), workdir_lock(tmp_path):
            pass
    with workdir_lock(tmp_path):
        pass


def test_a_log_line_has_the_utilisation_of_the_given_peak(reference, data):
    logged = [row for row in map(json.loads, lines(reference[0])) if "train/loss" in row]
    config, *_ = main.parse(["main.py", *arguments(data, reference[0])])
    macs = summarise(partial(build, **config["model"])).macs_per_view
    for row in logged:
        assert row["train/mfu"] == pytest.approx(row["train/clips_per_second"] * 6 * macs / 0.001e12)
    assert logged


def test_the_best_checkpoint_is_kept_besides_the_newest(reference):
    scores = {row["step"]: row["val/top1@1x1"] for row in rows(reference[0]) if "val/top1@1x1" in row}
    best = max(scores, key=lambda step: (scores[step], step))
    assert sorted(scores) == [4, 8, 12]
    assert saved_steps(reference[0]) == sorted({best, 9, 12})


def test_a_video_that_cannot_be_decoded_is_named_once_and_counted(reference, data):
    workdir, out = reference
    path = str(data / BAD)
    assert sum(path in line for line in out.splitlines()) == 1
    _, progress = checkpoint(workdir, 12)
    assert list(progress["bad"]) == [path] and progress["bad"][path] in (2, 3)  # 96 clips of 40 videos
    assert sum(row.get("train/bad_rows", 0) for row in rows(workdir)) == progress["bad"][path]


def test_too_many_videos_that_cannot_be_decoded_end_the_run(data, tmp_path):
    message = Run(arguments(data, tmp_path, {"data.max_bad_fraction": 0.0})).error()
    assert "data.max_bad_fraction=0.0" in message and str(data / BAD) in message


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoints(halfway, data, tmp_path):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    step = saved_steps(workdir)[-1]
    before = checkpoint(workdir, step)[0]
    fields = {"optim.lr": 1e30, "checkpoint.every_steps": 1000, "train.eval_every_steps": 1000}
    message = Run(arguments(data, workdir, fields)).error()
    assert any(f"at step {n}:" in message for n in range(step + 1, 13)) and "optim.lr" in message
    assert saved_steps(workdir)[-1] == step
    for name, array in checkpoint(workdir, step)[0].items():
        np.testing.assert_array_equal(array, before[name])


@pytest.fixture(params=["full disk", "limit on file sizes"])
def small_disk(request, tmp_path):
    """Returns (a folder where a checkpoint does not fit, the limit on file sizes, a function that makes space)."""
    if request.param == "limit on file sizes":
        if shutil.which("prlimit") is None:
            pytest.skip("prlimit is not installed")
        yield tmp_path, 30_000, lambda: None
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield tmp_path, None, lambda: (tmp_path / "filler").unlink()
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_save_that_the_disk_refuses_ends_the_run_and_keeps_the_checkpoint(small_disk, halfway, reference, data):
    folder, limit, make_space = small_disk
    workdir = shutil.copytree(halfway, folder / "run")
    step = saved_steps(workdir)[-1]
    if limit is None:
        disk = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(max(disk.f_bavail * disk.f_frsize - 60_000, 0)))
    command = arguments(data, workdir)
    message = Run(command, file_size_limit=limit).error()
    assert f"continues from the checkpoint of step {step}." in message and str(workdir) in message
    assert ("No space left" if limit is None else "File too large") in message
    make_space()
    if limit is None:
        Run(command).finish()
        assert_same_run(workdir, reference[0])


def error_in_process(capsys, command):
    """Returns the error message of a command that must end with status 2, run in this process."""
    assert main.main(["main.py", *command]) == 2
    return one_sentence(capsys.readouterr().err)


def test_a_folder_in_use_is_refused_and_can_be_evaluated(halfway, data, tmp_path, capsys):
    workdir = shutil.copytree(halfway, tmp_path / "run")
    run = Run(arguments(data, workdir))
    run.wait_until(lambda: unfinished_saves(workdir))
    run.send(signal.SIGSTOP)  # while it saves
    try:
        description, unfinished = (workdir / "run.json").read_text(), unfinished_saves(workdir)
        assert "is in use by a run that is still alive" in error_in_process(capsys, arguments(data, workdir))
        assert main.main(["main.py", *arguments(data, workdir, mode="eval")]) == 0
        assert unfinished_saves(workdir) == unfinished and (workdir / "run.json").read_text() == description
    finally:
        run.send(signal.SIGCONT)
    assert "Continues" in run.finish()


def reverse_manifest(source, target):
    """Writes a manifest with the videos of another one in reverse order."""
    header, *videos = source.read_text().splitlines()
    target.write_text("\n".join([header, *videos[::-1]]) + "\n")


@pytest.mark.parametrize(
    "field, value",
    [("model.width", 32), ("seed", 1), ("train.batch_size", 16), ("data.train", "other.csv"), ("data.flip", 0.25)],
)
def test_the_folder_of_another_run_is_refused_and_the_message_names_the_field(field, value, halfway, data, capsys):
    reverse_manifest(data / "train.csv", data / "other.csv")
    files = {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}
    stored = json.loads((halfway / "run.json").read_text())["config"]
    section, _, name = field.rpartition(".")
    before = (stored[section] if section else stored)[name]
    message = error_in_process(capsys, arguments(data, halfway, {field: value}))
    assert f"{field}={before!r}, not {value!r}" in message
    assert f"Continue that run with --config.{field}={'none' if before is None else before}, or" in message
    assert files == {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}


EARLIER = {  # values of runs of an earlier version, of which the last may differ, except in CvT
    "vtn_vit_b16": {"data.sampling": "dense", "model.mean": (0.5, 0.5, 0.5), "optim.nesterov": False},
    "timesformer_b16": {
        "data.sampling": "dense",
        "data.fps": None,
        "model.drop_path": 0.0,
        "eval.average": "probabilities",
    },
    "tokenshift_b16": {"data.sampling": "dense", "data.short_side": (224, 330), "train.label_smoothing": 0.01},
    "cvt_13": {"model.gelu": "exact"},
    "stat_t16": {"model.head_dropout": 0.0, "optim.clip_norm": 1.0},
}


@pytest.mark.quick
@pytest.mark.parametrize("name", EARLIER)
def test_the_message_has_the_flags_that_continue_a_run_of_an_earlier_version(name, tmp_path):
    data = {"train": "digest", "train_list": "train.csv"}
    stored = load(f"configs/{name}.py").to_dict()
    for field, value in EARLIER[name].items():
        section, _, key = field.partition(".")
        stored[section][key] = value
    # Fields that an earlier version did not have.
    stored["data"] = {field: value for field, value in stored["data"].items() if value != getattr(Pipeline, field, "")}
    stored["model"].pop("gelu", None)
    (tmp_path / "run.json").write_text(json.dumps({"config": stored, "data": data}))
    config = load(f"configs/{name}.py")
    with pytest.raises(ConfigError) as refusal:
        differences_from_stored_run(tmp_path, {"config": config.to_dict(), "data": data})
    flags = shlex.split(re.search("Continue that run with (.*), or give another workdir", str(refusal.value)).group(1))
    for flag in flags:
        field, _, value = flag.removeprefix("--config.").partition("=")
        override(config, field, value)
    changes = differences_from_stored_run(tmp_path, {"config": config.to_dict(), "data": data})
    assert len(changes) == len(EARLIER[name]) - len(flags) == (name != "cvt_13"), changes


def test_the_description_of_a_run_names_the_backend_of_every_attention(halfway):
    attention = json.loads((halfway / "run.json").read_text())["attention"]
    assert attention and set(attention.values()) == {"einsum"} and all("x" in shape for shape in attention)


def test_a_manifest_that_has_changed_under_its_name_is_refused(halfway, data, tmp_path, capsys):
    other = shutil.copytree(data, tmp_path / "clips")
    reverse_manifest(data / "train.csv", other / "train.csv")
    message = error_in_process(capsys, arguments(other, halfway))
    digest = json.loads((halfway / "run.json").read_text())["data"]["train"]
    assert "train.csv" in message and digest in message


@pytest.mark.parametrize("options", [{"optim.ema_decay": 0.9, "train.accumulate": 2, "optim.name": "sgd"}, {}])
def test_a_state_is_restored_onto_any_mesh(options, data, tmp_path):
    config, *_ = main.parse(["main.py", *arguments(data, tmp_path, {"train.batch_size": 16, **options})])
    setup = set_up(config)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.device_put(rng.integers(0, 100, leaf.shape).astype(leaf.dtype), leaf.sharding), setup.abstract
    )
    progress = {"bad": {"a.mp4": 2}, "pending": [{"loss": 0.1}]}
    with Checkpoints(tmp_path, every_steps=1, keep=1) as checkpoints:
        assert checkpoints.restore(setup.abstract) is None
        for step, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
            checkpoints.save(step, state, progress)
            checkpoints.add_metrics(step, {"val/top1@1x1": score})
        checkpoints.wait()
    if jax.device_count() % 2 == 0:
        setup = set_up(config | {"mesh": {"data": -1, "fsdp": 2}})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for which, expected_step in (("latest", 3), ("best", 1)):
            restored, restored_progress, step = checkpoints.restore(setup.abstract, which)
            assert (restored_progress, step) == (progress, expected_step)
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            assert jax.tree.map(lambda x: x.sharding, restored) == setup.shardings
        clipped = set_up(config | {"optim": config["optim"] | {"clip_norm": None}})
        assert checkpoints.restore(clipped.abstract)[2] == 3
        other = set_up(config | {"model": config["model"] | {"width": 32}})
        with pytest.raises(ConfigError, match=r"is \(.*16.*\) there and \(.*32.*\) here"):
            checkpoints.restore(other.abstract)


def test_a_step_too_large_for_the_device_is_refused_with_a_setting_that_fits(data, tmp_path, monkeypatch):
    compile = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: compile(self, compiler_options=QUICK))

    def set_up_with(fields):
        fields = {"train.batch_size": 32, "model.depth": 3, **fields}
        config, *_ = main.parse(["main.py", *arguments(data, tmp_path, fields)])
        return set_up(config)

    setup = set_up_with({})
    full = memory.program_bytes(compile_step(setup))
    least = memory.program_bytes(compile_step(setup, remat="full", accumulate=32 // setup.mesh.size))
    limit = (full + least) // 2
    with pytest.raises(ConfigError) as refusal:
        compile_within_memory(setup, limit)
    fields = dict(re.findall(r"(model\.remat|train\.accumulate|optim\.in_backward)=(\w+)", str(refusal.value)))
    assert fields and memory.program_bytes(compile_within_memory(set_up_with(fields), limit)) <= limit
    assert "mesh.fsdp" in memory.out_of_memory_message(1000, full, [("train.accumulate=2", least)])

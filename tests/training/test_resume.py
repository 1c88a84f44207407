"""A run killed, stopped or refused a save, and started again by the same command is the run uninterrupted."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
from command import (
    BAD,
    CACHE,
    Run,
    arguments,
    assert_same_run,
    checkpoint,
    copy,
    render,
    rows,
    saved,
)

import main
from vidformers.errors import ConfigError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("resume") / "clips")


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """The workdir of a run never interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    return workdir, Run(arguments(data, workdir)).finish()


@pytest.fixture(scope="module")
def halfway(reference, data, tmp_path_factory):
    """The workdir of a run that was stopped between two steps."""
    workdir = tmp_path_factory.mktemp("halfway") / "run"
    run = Run(arguments(data, workdir))
    run.until(lambda: lines(workdir))
    run.send(signal.SIGTERM)
    code, out, err = run.end()
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert "which is saved: the same command continues." in out.splitlines()[-1]
    return workdir


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def steps_saved(workdir):
    return [int(name) for name in saved(workdir) if name.isdigit()]


def half_saves(workdir):
    return [name for name in saved(workdir) if not name.isdigit()]


def with_workers(count):
    """Fields; each evaluation starts its workers, which takes long: with any there is only the last one."""
    return {"data.workers": count, **({"train.eval_every_steps": "none"} if count else {})}


MOMENTS = {
    "compiling": lambda workdir: (workdir / "checkpoints").is_dir(),
    "first steps": lambda workdir: lines(workdir) and not saved(workdir),
    "saving": half_saves,
    "evaluating": lambda workdir: any('"step": 4' in line for line in lines(workdir)),
}


@pytest.mark.parametrize("moment, workers", [("compiling", 0), ("first steps", 1), ("saving", 2), ("evaluating", 0)])
def test_a_run_killed_at_any_moment_continues_bit_for_bit(moment, workers, reference, data, tmp_path):
    command = arguments(data, tmp_path, with_workers(workers))
    for _ in range(5 if moment == "saving" else 1):  # a save may end between the look and the kill
        run = Run(command)
        run.until(lambda: MOMENTS[moment](tmp_path))
        run.kill()
        if half_saves(tmp_path):
            break
    if moment == "compiling":
        assert not lines(tmp_path)
    if moment == "first steps":
        assert not steps_saved(tmp_path)
        with open(tmp_path / "metrics.jsonl", "a") as file:  # written after the last save, the last line half
            file.write('{"step": 3, "time": 1.0, "train/loss": 2.0}\n{"step": 4, "ti')
    if moment == "saving":
        assert half_saves(tmp_path)
    if moment == "evaluating":
        assert not any("val/" in line for line in lines(tmp_path))
    Run(command).finish()
    assert_same_run(tmp_path, reference[0], evaluations=not workers)


def test_a_stopped_run_continues_bit_for_bit(halfway, reference, data, tmp_path):
    workdir = copy(halfway, tmp_path / "run")
    assert 0 < steps_saved(workdir)[-1] < 12
    assert "Continues" in Run(arguments(data, workdir)).finish()
    assert_same_run(workdir, reference[0])


def test_a_run_with_workers_stopped_by_ctrl_c_continues_bit_for_bit(reference, data, tmp_path):
    command = arguments(data, tmp_path, with_workers(1))
    run = Run(command)
    run.until(lambda: lines(tmp_path))
    run.send(signal.SIGINT, group=True)
    code, out, err = run.end()
    assert (code, err) == (128 + signal.SIGINT, "") and "is saved: the same command continues." in out
    Run(command).finish()
    assert_same_run(tmp_path, reference[0], evaluations=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_loads_is_answered_in_a_sentence(number, data, tmp_path):
    run = Run(arguments(data, tmp_path))
    run.until(lambda: (tmp_path / "checkpoints").is_dir())
    run.send(number, group=True)
    code, out, err = run.end()
    assert code == 128 + number and "Traceback" not in err and (out + err).count("\n") == 1


def test_another_number_of_devices_continues_to_rounding(halfway, reference, data, tmp_path):
    workdir = copy(halfway, tmp_path / "run")
    Run(arguments(data, workdir, {"mesh.fsdp": 2, "model.remat": "full"}), devices=4).finish()
    for one, other in zip(rows(workdir), rows(reference[0]), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if "top" not in name:
                assert one[name] == pytest.approx(other[name], rel=1e-3), name


def test_a_finished_run_started_again_changes_no_figure(reference, data, tmp_path):
    workdir = copy(reference[0], tmp_path / "run")
    assert main.main(["main.py", *arguments(data, workdir)]) == 0
    assert_same_run(workdir, reference[0])


def test_the_best_checkpoint_is_kept_besides_the_newest(reference):
    scores = {row["step"]: row["val/top1@1x1"] for row in rows(reference[0]) if "val/top1@1x1" in row}
    best = max(scores, key=lambda step: (scores[step], step))
    assert sorted(scores) == [4, 8, 12]
    assert sorted(steps_saved(reference[0])) == sorted({best, 9, 12})


def test_a_video_that_will_not_decode_is_named_once_and_counted(reference, data):
    workdir, out = reference
    path = str(data / BAD)
    assert sum(path in line for line in out.splitlines()) == 1
    _, progress = checkpoint(workdir, 12)
    assert list(progress["bad"]) == [path] and progress["bad"][path] in (2, 3)  # 96 clips of 40 videos
    assert sum(row.get("train/bad_rows", 0) for row in rows(workdir)) == progress["bad"][path]


def test_too_many_videos_that_will_not_decode_end_the_run(reference, data, tmp_path):
    said = Run(arguments(data, tmp_path, {"data.max_bad_fraction": 0.01})).refused()
    assert "data.max_bad_fraction=0.01" in said and str(data / BAD) in said


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(halfway, data, tmp_path):
    workdir = copy(halfway, tmp_path / "run")
    step = steps_saved(workdir)[-1]
    before = checkpoint(workdir, step)[0]
    fields = {"optim.lr": 1e30, "checkpoint.every_steps": 1000, "train.eval_every_steps": 1000}
    said = Run(arguments(data, workdir, fields)).refused()
    assert any(f"at step {n}:" in said for n in range(step + 1, 13)) and "optim.lr" in said
    assert steps_saved(workdir)[-1] == step
    for name, array in checkpoint(workdir, step)[0].items():
        np.testing.assert_array_equal(array, before[name])


def test_programs_half_written_to_the_cache_are_replaced_without_a_word(halfway, data, tmp_path):
    programs = (CACHE / "vidformers" / "compiled").glob("jit_step*cache")
    cut = {path: path.stat().st_size // 2 for path in programs}
    for path, size in cut.items():
        os.truncate(path, size)
    Run(arguments(data, copy(halfway, tmp_path / "run"))).finish()
    assert any(path.exists() and path.stat().st_size > size for path, size in cut.items())


@pytest.fixture(params=["full disk", "limit on file sizes"])
def room(request, tmp_path):
    """(a folder where a checkpoint does not fit, the limit in bytes, a function that makes room)."""
    if request.param == "limit on file sizes":
        if shutil.which("prlimit") is None:
            pytest.skip("prlimit is not installed")
        yield tmp_path, 30_000, lambda: None
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield tmp_path, None, lambda: (tmp_path / "filler").unlink()
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_save_that_the_disk_refuses_ends_the_run_and_spares_the_checkpoint(room, halfway, reference, data):
    folder, limit, make_room = room
    workdir = copy(halfway, folder / "run")
    step = steps_saved(workdir)[-1]
    if limit is None:
        left = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(max(left.f_bavail * left.f_frsize - 60_000, 0)))
    command = arguments(data, workdir)
    said = Run(command, limit=limit).refused()
    assert f"continues from the checkpoint of step {step}." in said and str(workdir) in said
    assert ("No space left" if limit is None else "File too large") in said
    make_room()
    if limit is None:
        Run(command).finish()
        assert_same_run(workdir, reference[0])


def refused(capsys, command):
    assert main.main(["main.py", *command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vidformers: ") and error.count("\n") == 1
    return error


def test_a_folder_in_use_is_refused_and_can_be_evaluated(halfway, data, tmp_path, capsys):
    workdir = copy(halfway, tmp_path / "run")
    run = Run(arguments(data, workdir))
    run.until(lambda: half_saves(workdir))
    run.send(signal.SIGSTOP)  # in the midst of a save
    try:
        before, halves = (workdir / "run.json").read_text(), half_saves(workdir)
        assert "is in use by a run that is still alive" in refused(capsys, arguments(data, workdir))
        assert main.main(["main.py", *arguments(data, workdir, mode="eval")]) == 0
        assert half_saves(workdir) == halves and (workdir / "run.json").read_text() == before
    finally:
        run.send(signal.SIGCONT)
    assert "Continues" in run.finish()


@pytest.mark.parametrize(
    "field, value",
    [("model.width", 32), ("seed", 1), ("train.batch_size", 16), ("data.train", "other.csv"), ("data.flip", 0.25)],
)
def test_the_folder_of_another_run_is_refused_saying_what_differs(field, value, halfway, data, capsys):
    listed = (data / "train.csv").read_text().splitlines()
    (data / "other.csv").write_text("\n".join([listed[0], *listed[:0:-1]]) + "\n")
    files = {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}
    assert f"{field}=" in refused(capsys, arguments(data, halfway, {field: value}))
    assert files == {path: path.read_bytes() for path in halfway.rglob("*") if path.is_file()}


def test_the_list_of_another_run_is_refused_even_under_its_old_name(halfway, data, tmp_path, capsys):
    other = tmp_path / "clips"
    shutil.copytree(data, other)
    listed = (other / "train.csv").read_text().splitlines()
    (other / "train.csv").write_text("\n".join([listed[0], *listed[:0:-1]]) + "\n")
    said = refused(capsys, arguments(other, halfway))
    assert "train.csv" in said and json.loads((halfway / "run.json").read_text())["data"]["train"] in said


@pytest.mark.parametrize("options", [{"optim.ema_decay": 0.9, "train.accumulate": 2, "optim.name": "sgd"}, {}])
def test_a_state_survives_saving_and_restoring_onto_any_mesh(options, data, tmp_path):
    import jax

    from vidformers.training.checkpoint import Checkpoints
    from vidformers.training.setup import initialise, set_up

    config, *_ = main.parse(["main.py", *arguments(data, tmp_path, {"train.batch_size": 16, **options})])
    setup = set_up(config)
    state, progress = initialise(setup), {"bad": {"a.mp4": 2}, "pending": [{"loss": 0.1}]}
    with Checkpoints(tmp_path, every_steps=1, keep=1) as checkpoints:
        assert checkpoints.restore(setup.abstract) is None
        for step, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
            checkpoints.save(step, state, progress, {"val/top1@1x1": score})
        checkpoints.wait()
    if jax.device_count() % 2 == 0:
        setup = set_up(config | {"mesh": {"data": -1, "fsdp": 2}})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for which, expected in (("latest", 3), ("best", 1)):
            restored, kept, step = checkpoints.restore(setup.abstract, which)
            assert (kept, step) == (progress, expected)
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            assert jax.tree.map(lambda x: x.sharding, restored) == setup.shardings
        clipped = set_up(config | {"optim": config["optim"] | {"clip_norm": None}})
        assert checkpoints.restore(clipped.abstract)[2] == 3
        other = set_up(config | {"model": config["model"] | {"width": 32}})
        with pytest.raises(ConfigError, match=r"is \(.*16.*\) there and \(.*32.*\) here"):
            checkpoints.restore(other.abstract)


def test_a_step_too_large_for_the_device_is_refused_with_a_setting_that_fits(data, tmp_path):
    import re

    from vidformers.parallel import memory
    from vidformers.training.setup import compile_step, compile_within_memory, set_up

    def ready(fields):
        config, *_ = main.parse(
            ["main.py", *arguments(data, tmp_path, {"train.batch_size": 32, "model.depth": 3, **fields})]
        )
        return set_up(config)

    setup = ready({})
    full = memory.program_bytes(compile_step(setup))
    least = memory.program_bytes(compile_step(setup, remat="full", accumulate=32 // setup.mesh.size))
    limit = (full + least) // 2
    with pytest.raises(ConfigError) as refusal:
        compile_within_memory(setup, limit)
    fields = dict(re.findall(r"(model\.remat|train\.accumulate|optim\.in_backward)=(\w+)", str(refusal.value)))
    assert fields and memory.program_bytes(compile_within_memory(ready(fields), limit)) <= limit
    assert "mesh.fsdp" in memory.out_of_memory_message(1000, full, [("train.accumulate=2", least)])

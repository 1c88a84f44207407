"""Damage to the checkpoints and metrics of a run is noticed. Nothing is lost silently or deleted."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command import flip_a_bit

from input_pipeline import checksums
from vidformers.errors import ConfigError
from vidformers.pretrained import orbax_file
from vidformers.training import checkpoint
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.metrics import MetricWriter, read_metrics
from vidformers.training.step import State
from vidformers.training.workdir import last_saved_step, write_run_json

METRIC = "val/top1@1x1"
RUN = {"config": {"model": {}, "data": {}, "checkpoint": {"every_steps": 10}}, "data": {"classes": ["a"]}}
HOST_STATE = {"bad": {"a.mp4": 1}, "pending": [{"loss": 0.5}], "bad_in_pass": 0}


def state(step):
    rng = np.random.default_rng(step)
    arrays = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("kernel", "bias")}
    return jax.device_put(State(np.int32(step), arrays, {"mu": arrays["bias"] + 1}, ()), jax.devices()[0])


def abstract():
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


def restore(workdir, which="latest", read_only=False):
    with Checkpoints(workdir, read_only=read_only) as checkpoints:
        return checkpoints.restore(abstract(), which)


def assert_restores(workdir, step, **options):
    restored, host_state, actual = restore(workdir, **options)
    assert (actual, host_state) == (step, HOST_STATE)
    jax.tree.map(np.testing.assert_array_equal, restored, state(step))


def save(workdir, scores, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), HOST_STATE)
            if score is not None:
                checkpoints.add_metrics(step, {METRIC: score, "val/loss@1x1": 1.0})


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a run with the checkpoints of steps 1, the best one, 2 and 3.

    The arrays of each lie in one file of more than one block, which is verified during its load.
    """
    workdir = tmp_path_factory.mktemp("saved")
    write_run_json(workdir, RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "_BLOCK_BYTES", 2**14)
        save(workdir, {1: 0.9, 2: 0.5, 3: 0.25})
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def damages(path, rng):
    """Yields functions that damage a file in different ways."""
    size = path.stat().st_size

    def flip():
        content = bytearray(path.read_bytes())
        content[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)

    if size:
        yield from [flip] * 2
        yield lambda: path.write_bytes(path.read_bytes()[: rng.randrange(size)])
        yield lambda: path.write_bytes(b"")
    yield path.unlink
    yield lambda: path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.quick
def test_no_damage_to_a_file_of_the_newest_checkpoint_goes_unnoticed(run, capsys, monkeypatch):
    monkeypatch.delattr(Checkpoints, "_unreadable")  # all damage that a load would fail on is found before
    newest, rng = run / "checkpoints" / "3", random.Random(0)
    content = files(newest)
    assert {path.name for path in content} >= {"checksums.json", "_CHECKPOINT_METADATA", "manifest.ocdbt", "metrics"}
    for path in content:
        for change in damages(newest / path, rng):
            change()
            damaged = files(newest)
            assert damaged != content
            assert_restores(run, 2, read_only=True)
            assert "The checkpoint of step 3 in" in capsys.readouterr().out
            assert files(newest) == damaged
            for name, each in content.items():
                (newest / name).write_bytes(each)


def damage(workdir, step, name="state"):
    """Flips a bit in the largest file of a folder in a checkpoint."""
    paths = [path for path in (workdir / "checkpoints" / str(step) / name).rglob("*") if path.is_file()]
    flip_a_bit(max(paths, key=lambda path: path.stat().st_size))


@pytest.mark.quick
def test_a_run_continues_from_the_checkpoint_before_a_damaged_one_which_is_renamed(run, capsys):
    damage(run, 3)
    damaged = files(run / "checkpoints" / "3")
    assert_restores(run, 2)
    assert "differs from its checksum. It is renamed to 3.damaged and left out." in capsys.readouterr().out
    assert files(run / "checkpoints" / "3.damaged") == damaged and names(run) == ["1", "2", "3.damaged"]
    save(run, {3: 0.125})
    damage(run, 3)
    assert_restores(run, 2)
    assert names(run) == ["1", "2", "3.damaged", "3.damaged.2"]


@pytest.mark.quick
def test_arrays_are_stored_uncompressed_and_compressed_ones_are_restored(run, monkeypatch):
    stored = state(0)._replace(parameters={"kernel": jax.numpy.zeros((64, 64))})
    with Checkpoints(run / "zeros") as checkpoints:
        checkpoints.save(1, stored, HOST_STATE)
    sizes = [len(content) for content in files(run / "zeros").values()]
    assert max(sizes) > stored.parameters["kernel"].nbytes
    monkeypatch.setattr(checkpoint, "_UNCOMPRESSED", checkpoint.ocp.Context())
    with Checkpoints(run / "compressed") as checkpoints:
        checkpoints.save(1, stored, HOST_STATE)
    assert max(len(content) for content in files(run / "compressed").values()) < max(sizes) / 2
    save(run, {4: 0.1})
    assert_restores(run, 4)


@pytest.mark.quick
def test_a_load_that_fails_on_a_damaged_large_file_is_damage_as_well(run, monkeypatch, capsys):
    load = checkpoint.ocp.load_checkpointables

    def fail(path, abstract):
        if path.name == "3":
            raise ValueError("arrays that cannot be decompressed")
        return load(path, abstract)

    damage(run, 3)
    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", fail)
    assert_restores(run, 2)
    assert "differs from its checksum. It is renamed to 3.damaged and left out." in capsys.readouterr().out


@pytest.mark.quick
def test_a_signal_while_a_checkpoint_is_read_ends_the_program_and_damages_nothing(run, monkeypatch):
    """As if the checkpoint had no arrays: Orbax catches the exception of a signal handler, and returns that."""
    read, before = checkpoint.ocp.checkpointables_metadata, names(run)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it

    def interrupted(path):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return SimpleNamespace(metadata={"state": {}})
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "a second signal ends a read that takes long"
        return read(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.ocp, "checkpointables_metadata", interrupted)
        restore(run)
    assert signal.signal(signal.SIGINT, ignored) == signal.default_int_handler and names(run) == before
    assert_restores(run, 3)


@pytest.mark.quick
def test_a_damaged_checkpoint_gives_no_initial_weights(run):
    damage(run, 3)
    with pytest.raises(ConfigError, match=r"checkpoints/3 is damaged: state/.* differs from its checksum"):
        orbax_file.read(run / "checkpoints" / "3" / "state")


@pytest.mark.quick
def test_an_empty_folder_or_a_file_in_place_of_a_checkpoint_is_damage(run):
    shutil.rmtree(run / "checkpoints" / "3")
    (run / "checkpoints" / "3").mkdir()
    (run / "checkpoints" / "4").write_text("no folder")
    assert_restores(run, 2)
    assert names(run) == ["1", "2", "3.damaged", "4.damaged"]


@pytest.mark.quick
def test_files_that_a_checkpoint_does_not_list_are_ignored(run):
    for name in ("notes.txt", "state/.nfs0001", "state/d/other"):
        (run / "checkpoints" / "3" / name).write_text("other")
    assert_restores(run, 3)


@pytest.mark.quick
def test_a_run_is_refused_where_all_checkpoints_are_damaged_or_gone(run):
    for step in (1, 2, 3):
        damage(run, step)
    with pytest.raises(ConfigError, match=r"All checkpoints in .*checkpoints are damaged: step 3: state/"):
        restore(run, read_only=True)
    assert names(run) == ["1", "2", "3"]
    for message in ("All checkpoints in", "holds a run that has saved checkpoints, but"):
        with pytest.raises(ConfigError, match=message):
            restore(run)
        assert names(run) == ["1.damaged", "2.damaged", "3.damaged"]
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="holds a run that has saved checkpoints, but"):
        restore(run)


@pytest.mark.quick
def test_a_newest_checkpoint_that_is_gone_is_named(run, capsys):
    shutil.rmtree(run / "checkpoints" / "3")
    for read_only in (True, False):
        assert_restores(run, 2, read_only=read_only)
        assert "The checkpoint of step 3 in" in (out := capsys.readouterr().out) and " is gone. " in out
    save(run, {3: None})
    assert_restores(run, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.quick
def test_a_run_of_an_earlier_version_has_saved_if_it_went_beyond_its_second_save(tmp_path):
    write_run_json(tmp_path, RUN)
    for step, expected in ((20, 0), (21, 10)):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}, "time": 1.0}}\n')
        assert last_saved_step(tmp_path) == expected
    (tmp_path / "metrics.jsonl").unlink()
    assert restore(tmp_path) is None


def as_saved_before(workdir, step):
    """Makes a checkpoint one of an earlier version, which has no checksums."""
    folder = workdir / "checkpoints" / str(step)
    for path in folder.rglob("checksums.json"):
        path.unlink()
    path = folder / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    del metadata["custom_metadata"]["has_checksums"]
    path.write_text(json.dumps(metadata))


@pytest.mark.quick
def test_checkpoints_without_checksums_are_loaded_and_said_to_be_unverified(run, capsys):
    for step in (1, 2, 3):
        as_saved_before(run, step)
    assert_restores(run, 3)
    assert "step 3" in (out := capsys.readouterr().out) and "It is unverified." in out
    assert_restores(run, 1, which="best")
    (run / "checkpoints" / "3" / "state" / "_METADATA").write_text("{")
    assert_restores(run, 2)
    assert names(run) == ["1", "2", "3.damaged"]


@pytest.mark.quick
@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, ImportError, AssertionError])
def test_an_error_of_the_program_damages_no_checkpoint(run, monkeypatch, error, has_checksums):
    def fail(*_):
        raise error("a fault of the program")

    if not has_checksums:
        as_saved_before(run, 3)
    monkeypatch.setattr(checkpoint.ocp, "load_checkpointables", fail)
    with pytest.raises(error, match="a fault of the program"):
        restore(run)
    assert names(run) == ["1", "2", "3"]


@pytest.mark.quick
def test_the_best_checkpoint_is_found_by_metrics_that_are_added_later(run, capsys):
    assert names(run) == ["1", "2", "3"]
    assert_restores(run, 1, which="best")
    save(run, {4: None})  # killed before its evaluation
    assert names(run) == ["1", "3", "4"]
    assert_restores(run, 1, which="best")
    with Checkpoints(run) as checkpoints:
        checkpoints.add_metrics(4, {METRIC: 0.95})
        checkpoints.add_metrics(4, {"val/top1@4x3": 0.99})
    assert names(run) == ["3", "4"]
    assert_restores(run, 4, which="best")
    damage(run, 4, "metrics")
    assert_restores(run, 3, which="best", read_only=True)
    assert "metrics/checksums.json is damaged" in capsys.readouterr().out
    save(run, {5: 0.1, 6: 0.1})
    assert names(run) == ["3", "4", "5", "6"], "a checkpoint whose metrics are damaged is not removed"


@pytest.mark.quick
def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    fsync, rename, flushed, missing = os.fsync, Path.rename, set(), []

    def record(descriptor):
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def check(path, target):
        if path.name == "1.saving":
            missing.append({str(each) for each in (path, *path.rglob("*"))} - flushed)
            flushed.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    save(tmp_path, {1: 0.5})
    assert missing == [set()]
    assert str(tmp_path / "checkpoints") in flushed, "its name is flushed as well"


@pytest.mark.quick
def test_a_checkpoint_that_is_a_link_is_restored_and_only_the_link_is_removed(run, tmp_path):
    elsewhere = (run / "checkpoints" / "2").rename(tmp_path / "elsewhere")
    (run / "checkpoints" / "2").symlink_to(elsewhere)
    damage(run, 3)
    before = files(elsewhere)
    assert_restores(run, 2)
    (run / "checkpoints" / "2.removing").mkdir()  # what could not be removed before is in nobody's way
    (run / "checkpoints" / "2.removing" / "file").touch()
    save(run, {4: 0.1, 5: 0.1})
    assert names(run) == ["1", "3.damaged", "4", "5"] and files(elsewhere) == before
    (run / "checkpoints" / "6.saving").write_text("a file")
    (run / "checkpoints" / "7.removing").symlink_to(elsewhere)
    assert_restores(run, 5)
    assert names(run) == ["1", "3.damaged", "4", "5"] and files(elsewhere) == before


@pytest.mark.quick
def test_what_killed_processes_left_is_removed_by_a_run_alone(run):
    for name in ("4.saving.orbax-checkpoint-tmp", "4.saving", "1.removing", "4.orbax-checkpoint-tmp"):
        (run / "checkpoints" / name / "state").mkdir(parents=True)
    assert_restores(run, 3, read_only=True)
    assert len(names(run)) == 7
    assert_restores(run, 3)
    assert names(run) == ["1", "2", "3"]


ROWS = [{"step": step, "time": 1.0, "train/loss": 2.0} for step in (1, 2, 3)]
DAMAGED_ROWS = [
    b'{"step": 2, "time": 1.0, "train/l\xff\xfess": 2.0}',
    b"[1, 2, 3]",
    b'{"time": 1.0, "train/loss": 2.0}',
    b'{"step": "2", "time": 1.0, "train/loss": 2.0}',
    b'{"step": true, "time": 1.0}',
    b'{"step": 2.5, "time": 1.0}',
    b'{"step": -1, "time": 1.0}',
    b'{"step": 1e400, "time": 1.0}',
    b'{"step": 99999999999999999999, "time": 1.0}',
    b'{"step": 2, "time": 1.0, "train/loss": "2.0"}',
    b'{"step": 2, "time": null}',
    b'{"step": 2, "time": 1.0, "train/loss": ' + b"9" * 400 + b"}",
    b"\0" * 40,
    b'{"step": 2, "time"',
    b"[" * 100_000,
]


@pytest.mark.quick
@pytest.mark.parametrize("row", DAMAGED_ROWS, ids=range(len(DAMAGED_ROWS)))
def test_damaged_rows_of_metrics_are_left_out_and_the_file_is_kept(row, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    before = b"\n".join([json.dumps(ROWS[0]).encode(), row, json.dumps(ROWS[2]).encode(), b'{"step": 4, "ti'])
    path.write_bytes(before)
    assert read_metrics(tmp_path) == [ROWS[0], ROWS[2]]
    MetricWriter(tmp_path, 3).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ROWS[0], ROWS[2]]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before
    assert "has 1 damaged rows" in capsys.readouterr().out


@pytest.mark.quick
def test_a_last_row_that_a_kill_cut_short_is_no_damage(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"step": 2, "ti')
    MetricWriter(tmp_path, 3).close()
    assert read_metrics(tmp_path) == [ROWS[0]] and not (tmp_path / "metrics.jsonl.damaged").exists()

"""Worker processes give the same batches, and none is left behind."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clips import assert_equal_batches, join_processes, pipeline, take
from imported import probe

from input_pipeline import DataError, Record
from input_pipeline.prefetch import Batches, max_batch_bytes, portable

ROOT = Path(__file__).parents[2]


def test_one_worker_gives_the_same_batches_and_its_unexpected_end_is_an_error(clip_folder, reference):
    batches = pipeline(clip_folder, workers=1, prefetch=1).train_batches(batch_size=4, seed=5)
    first = [next(batches) for _ in range(12)]
    assert_equal_batches(first, reference)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(DataError, match="decoding process has ended"):
        for _ in range(20):  # some batches are ready
            next(batches)
    batches.close()


@pytest.mark.quick
def test_closing_is_final_without_workers(clip_folder):
    batches = pipeline(clip_folder).train_batches(batch_size=4, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_validation_does_not_depend_on_workers(clip_folder):
    """Three batches for each of two processes, of which one divides them among two workers. A second pass is equal."""

    def batches(process_index, workers, passes=1):
        data = pipeline(clip_folder, workers=workers)
        options = dict(batch_size=4, clips=2, crops=3, process_count=2, passes=passes)
        return take(data.val_batches(process_index=process_index, **options), 99)

    expected = join_processes([batches(0, 0), batches(1, 0)])
    assert_equal_batches(join_processes([batches(0, 2, passes=2), batches(1, 0) * 2]), expected * 2)
    assert len(expected) == 3


@pytest.mark.quick
def test_there_are_no_more_workers_than_validation_batches(clip_folder, monkeypatch):
    chosen = [Record(7, f"{clip_folder}/4.mp4", 1, 1)]
    workers = []

    def batches(tasks, make, **options):
        workers.append(options["workers"])
        return Batches(tasks, make, **{**options, "workers": 0})

    monkeypatch.setattr("input_pipeline.pipeline.Batches", batches)
    data = pipeline(clip_folder, workers=2)
    (batch,) = take(data.val_batches(batch_size=2, clips=1, crops=1, records=chosen), 9)
    assert batch["id"].tolist() == [7, -1] and batch["mask"].tolist() == [1, 0]
    data.val_batches(batch_size=2, clips=1, crops=1)
    assert workers == [1, 2]


def test_a_worker_imports_no_jax_reports_its_errors_and_ends_when_closed(clip_folder, monkeypatch):
    """Grain and JAX would take 160 MB of each worker."""
    tasks = []
    with monkeypatch.context() as patch:
        patch.setattr("input_pipeline.pipeline.Batches", lambda tasks_, make, **_: tasks.append((tasks_[0], make)))
        pipeline(clip_folder).train_batches(batch_size=4, seed=5)
        pipeline(clip_folder, sampling="dense").val_batches(batch_size=2, clips=1, crops=1)
    batches = Batches([*tasks, tasks[0], (3, None), (4, None)], probe, workers=1, prefetch=1)
    for _ in range(3):
        batch = next(batches)
        assert batch["environment"] == b"cpu" and not batch["imported"].any()
    for _ in range(2):
        with pytest.raises(KeyError, match="batch 3") as raised:
            next(batches)
    assert "in probe" in raised.value.__notes__[0]
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    assert not multiprocessing.active_children()


@pytest.mark.quick
def test_an_error_that_cannot_be_pickled_passes_as_its_traceback():
    with pytest.raises(KeyError) as raised:
        probe((4, None))
    assert isinstance(portable(raised.value), RuntimeError) and "batch 4" in str(portable(raised.value))


@pytest.mark.quick
def test_batches_fit_into_half_of_the_available_memory(monkeypatch):
    monkeypatch.setattr("input_pipeline.prefetch.available_bytes", lambda: 6000)
    assert max_batch_bytes(0, 2) == 3000
    # A worker makes one batch, keeps two and sends one. The parent receives one, keeps one and uses one.
    assert max_batch_bytes(3, 2) == 3000 / 15


@pytest.mark.quick
def test_training_batches_that_do_not_fit_in_memory_are_refused_before_a_worker_starts(clip_folder, monkeypatch):
    fits = 2 * (3 + 2) + 3
    monkeypatch.setattr("input_pipeline.prefetch.available_bytes", lambda: fits * 4 * 4 * 24 * 24 * 3 - 1)
    with pytest.raises(
        DataError, match=r"data.workers=2 and data.prefetch=3, 13 batches of 0 MiB .* Lower data.workers"
    ):
        pipeline(clip_folder, workers=2, prefetch=3).train_batches(batch_size=4, seed=5)
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, os, pickle, sys
from clips import pipeline

if __name__ == '__main__':
    batches = pipeline(sys.argv[1], workers=int(sys.argv[2])).train_batches(batch_size=4, seed=5)
    held = [next(batches)]
    assert os.environ.get('JAX_PLATFORMS') == 'parent'
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    held += [next(batches) for _ in range(20)]
    with open(sys.argv[3], 'wb') as file:
        pickle.dump(held[:12], file)
"""


@pytest.fixture
def start(clip_folder, tmp_path):
    """Starts a program with workers in a process group of its own. Returns the program and the ids of the workers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    processes = []

    def start(workers):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), clip_folder, str(workers), str(tmp_path / "batches")],
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "parent"},
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == workers and all(map(is_alive, pids)), process.stderr.read()
        return process, pids

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_all_end(pids, seconds=5):
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.05)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
def test_a_killed_parent_leaves_neither_a_worker_nor_shared_memory(start):
    parent, workers = start(1)
    for pid in (parent.pid, *workers):  # nothing with a name: batches and semaphores would stay in /dev/shm
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    assert_all_end(workers)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
def test_two_workers_give_the_same_batches_ignore_signals_and_end_with_the_program(start, tmp_path, reference):
    parent, workers = start(2)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
    _, errors = parent.communicate("go on\n", timeout=30)
    assert parent.returncode == 0, errors
    assert_equal_batches(pickle.loads((tmp_path / "batches").read_bytes()), reference)
    assert "leaked" not in errors and "Traceback" not in errors, errors
    assert_all_end(workers)

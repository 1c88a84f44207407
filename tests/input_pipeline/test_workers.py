"""Which signals a decoding process gets while it starts, what it imports, and what the front of the package loads."""

import subprocess
import sys
from pathlib import Path

import pytest

import input_pipeline

HEAVY = "{'grain', 'jax', 'flax', 'av', 'cv2', 'tensorflow', 'vidformers'}"


def imported_with(modules):
    """Returns which of the heavy packages are imported by importing the modules in a fresh interpreter."""
    script = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.mark.quick
def test_processes_that_decode_import_no_jax():
    """The modules whose functions run in the processes of `check`, of `prepare` and of the renderer of motion clips."""
    names = ("check", "prepare", "transcode", "motion_clips", "workers", "videos")
    assert imported_with([f"input_pipeline.{name}" for name in names]).split() == ["av", "cv2"]


@pytest.mark.quick
def test_the_first_process_of_a_program_starts_with_the_stop_signals_blocked():
    """In a fresh interpreter, where multiprocessing also starts its resource tracker, which unblocks signals."""
    script = """
import multiprocessing, signal
from input_pipeline.stop_signals import STOP_SIGNALS, stop_signals_blocked
context = multiprocessing.get_context("spawn")
receiver, sender = context.Pipe()
with stop_signals_blocked():
    code = "import signal; sender.send(signal.pthread_sigmask(0, ()))"
    child = context.Process(target=exec, args=(code, dict(sender=sender)))
    child.start()
print(set(STOP_SIGNALS) <= receiver.recv(), set(STOP_SIGNALS) & signal.pthread_sigmask(0, ()))
child.join()
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[0] == "True set()"


@pytest.mark.quick
def test_files_and_errors_load_no_decoder():
    assert imported_with(["input_pipeline", "input_pipeline.files", "input_pipeline.errors"]) == "\n"


@pytest.mark.quick
def test_the_front_gives_its_names_and_no_others():
    for name in input_pipeline.__all__:
        assert getattr(input_pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="input_pipeline.*'Pipelines'"):
        input_pipeline.Pipelines

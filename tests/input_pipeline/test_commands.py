"""The commands of the pipeline end with one sentence and a status, with and without a clone of the repository."""

import os
import subprocess
import sys

import pytest
from command import ROOT, one_sentence

from input_pipeline import check, prepare, show
from input_pipeline.commands import command
from input_pipeline.errors import DataError
from input_pipeline.stop_signals import STOP_SIGNALS

pytestmark = pytest.mark.quick
COMMANDS = ("check", "prepare", "show")


def fail_with(error):
    @command("usage")
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    "error, sentence",
    [
        (DataError("a.csv is empty."), "a.csv is empty."),
        (OSError(28, "No space left on device", "a.csv"), "a.csv cannot be read or written: No space left on device."),
        (OSError("the disk is gone"), "a file cannot be read or written: the disk is gone."),
    ],
)
def test_errors_become_one_sentence_and_status_2(error, sentence, capsys):
    assert fail_with(error)([]) == 2
    assert one_sentence(capsys.readouterr().err) == f"vidformers: {sentence}\n"


def test_a_closed_pipe_has_its_status(capsys):
    assert fail_with(BrokenPipeError())([]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hangup_is_not_ignored")
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_stops_a_program_even_where_python_ignores_its_exception(number):
    program = f"""
import signal, time
from input_pipeline.commands import command, run_program

class Freed:
    def __del__(self):
        signal.raise_signal({int(number)})

@command("usage")
def main(argv):
    Freed()
    time.sleep(60)

run_program(main)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + number
    assert done.stderr == "Interrupted. Finished work is kept; the same command continues it.\n"


def test_a_signal_after_the_work_does_not_change_the_status():
    program = """
import signal
from input_pipeline.commands import command, run_program
from input_pipeline.stop_signals import STOP_SIGNALS

class Late:
    def flush(self):
        for number in STOP_SIGNALS:
            signal.raise_signal(number)

@command("usage")
def main(argv):
    import sys
    sys.stdout = Late()
    return 1

run_program(main)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("module", [check, prepare, show], ids=COMMANDS)
@pytest.mark.parametrize("absent", ["configs", "configs.loading"])
def test_without_the_package_configs_an_error_asks_for_a_clone(module, absent, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "configs.loading", None)
    monkeypatch.setitem(sys.modules, absent, None)
    assert module.main(["--config=configs/demo.py"]) == 2
    assert "Run this command in the root folder of a clone of the repository." in one_sentence(capsys.readouterr().err)
    for flag in ("--help", "-h"):
        assert module.main([flag]) == 0
        assert capsys.readouterr().out.startswith("python -m input_pipeline.")


def test_an_installation_without_a_clone_asks_for_one(tmp_path):
    """In another folder, with nothing but the two packages that pip installs."""
    for package in ("vidformers", "input_pipeline"):
        (tmp_path / package).symlink_to(ROOT / package)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"input_pipeline.{name}", "--config=configs/demo.py", "--out=out"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in COMMANDS
    ]
    for process in processes:
        out, error = process.communicate(timeout=100)
        assert (process.returncode, out) == (2, "")
        assert "clone of the repository." in one_sentence(error)
    assert not (tmp_path / "out").exists()

"""Stop signals outside the training loop end the program with a message, even if JAX swallows the exception."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from command import ROOT

import main
from input_pipeline.stop_signals import StopRequested, handled_signals
from vidformers.training.stopping import StopSignal

pytestmark = pytest.mark.usefixtures("hangup_is_not_ignored")


@pytest.mark.quick
@pytest.mark.parametrize(
    "number, swallow",
    [(signal.SIGTERM, "try: signal.raise_signal(number)\n    except: pass"), (signal.SIGHUP, "Freed()")],
)
def test_a_signal_is_sent_again_if_its_exception_is_swallowed(number, swallow):
    program = f"""
import signal, sys, time, main
number = {number:d}

class Freed:
    def __del__(self):
        signal.raise_signal(number)

def run(_):
    {swallow}
    time.sleep(60)

main.run = run
main.install_signal_handlers()
sys.exit(main.main([]))"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + number and done.stderr.startswith("Interrupted.")
    assert done.stderr.count("\n") == 1


@pytest.mark.quick
def test_a_signal_that_is_reported_is_not_sent_again(monkeypatch, capsys):
    def interrupted(_):
        raise StopRequested(signal.SIGINT)

    resent = []
    monkeypatch.setattr(main, "run", interrupted)
    monkeypatch.setattr("threading.Timer", lambda *arguments: resent.append(arguments))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored after the test
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main.main(["main.py"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err.startswith("Interrupted.") and not resent


@pytest.mark.quick
def test_a_closed_terminal_ends_the_program_although_nothing_can_be_printed():
    program = """
import fcntl, sys, termios, time, main

def run(_):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    print("ready")
    time.sleep(60)

main.run = run
main.install_signal_handlers()
sys.exit(main.main([]))"""
    parent_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    with open(parent_end, "rb", buffering=0) as output:
        assert output.readline() == b"ready\r\n"
    assert process.wait(timeout=30) == 128 + signal.SIGHUP


@pytest.mark.quick
def test_a_second_hangup_does_not_kill_a_run_that_saves_and_nohup_ignores_it():
    with StopSignal() as stop:
        for _ in range(2):  # from the terminal and from its shell
            signal.raise_signal(signal.SIGHUP)
        assert stop.agreed and stop.signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert handled_signals() == (signal.SIGINT, signal.SIGTERM)
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.agreed
    finally:
        signal.signal(signal.SIGHUP, before)

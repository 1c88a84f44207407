"""SIGINT and SIGTERM outside the training loop end the program with a message, even if JAX swallows the exception."""

import signal
import subprocess
import sys

import pytest
from command import ROOT

import main
from vidformers.training.signals import StopRequested


@pytest.mark.quick
@pytest.mark.parametrize("swallow", ["try: signal.raise_signal(number)\n    except: pass", "Freed()"])
def test_a_signal_is_sent_again_if_its_exception_is_swallowed(swallow):
    program = f"""
import signal, sys, time, main
number = signal.SIGTERM

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
    assert done.returncode == 128 + signal.SIGTERM and done.stderr.startswith("Interrupted.")
    assert done.stderr.count("\n") == 1


@pytest.mark.quick
def test_a_signal_that_is_reported_is_not_sent_again(monkeypatch, capsys):
    def interrupted(_):
        raise StopRequested(signal.SIGINT)

    resent = []
    monkeypatch.setattr(main, "run", interrupted)
    monkeypatch.setattr("threading.Timer", lambda *arguments: resent.append(arguments))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored after the test
    assert main.main(["main.py"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err.startswith("Interrupted.") and not resent

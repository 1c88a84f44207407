"""Helpers to run `python main.py` as a user does: in a process of its own, which tests watch, stop and kill."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from tiny import QUICK

from benchmarks.campaign import processes

ROOT = processes.ROOT
# Each worker of pytest-xdist has its own compilation cache, since JAX does not write its entries atomically.
CACHE = ROOT / ".cache" / os.environ.get("PYTEST_XDIST_WORKER", "")
_XLA_FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
_TIMES = {"time", "train/clips_per_second", "train/frames_per_second", "train/data_wait", "train/mfu"}
_TIMEOUT_SECONDS = 180
BAD = "train/000007.mp4"
TINY = processes.TINY | {
    "data.max_bad_fraction": 0.1,
    "data.balance": 0.5,
    "train.class_weights": 0.5,
    "train.log_every_steps": 2,
    "train.peak_tflops": 0.001,  # so that metrics have train/mfu; the peak of a CPU is unknown
}


def render(folder):
    """Renders 40 training and 10 validation videos, of which BAD cannot be decoded. Returns their folder."""
    root = processes.render(folder)
    (root / BAD).write_bytes((root / BAD).read_bytes()[:500])
    return root


def arguments(data, workdir, fields=(), mode="train"):
    """Returns the command line of a tiny run; `fields` override those of TINY."""
    return processes.flags(data, workdir, {**TINY, **dict(fields)}, mode)


class Run:
    """A process that runs `main.py` in a session of its own.

    Args:
        arguments: the command line.
        devices: number of CPU devices.
        file_size_limit: bytes that a file written by the process may have, None for no limit.
        environment: variables beside those that all runs have.
        patches: assignments to variables of modules, such as `package.module.NAME = 1`, made before `main.py` runs.
    """

    def __init__(self, arguments, devices=1, file_size_limit=None, environment=None, patches=()):
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        env |= {
            "XDG_CACHE_HOME": str(CACHE),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *_XLA_FLAGS]),
            **(environment or {}),
        }
        prefix = [] if file_size_limit is None else ["prlimit", f"--fsize={file_size_limit}"]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *_program(patches), *arguments],
            cwd=ROOT,
            env=env,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_until(self, condition):
        """Waits until `condition()` is true while the process runs, and returns its value."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not (value := condition()):
            assert self.process.poll() is None, "ended too early:\n" + "".join(self.process.communicate())
            assert time.monotonic() < deadline, f"the condition was not met within {_TIMEOUT_SECONDS} s"
            time.sleep(0.002)
        return value

    def send(self, number, group=False):
        """Sends a signal to the process, or to all processes that it has started as well."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self):
        """Returns (exit status, stdout, stderr) after the end of the process and of all that it has started."""
        out, err = self.process.communicate(timeout=_TIMEOUT_SECONDS)
        deadline = time.monotonic() + 10
        while alive := processes.session_members(self.process.pid):
            assert time.monotonic() < deadline, f"outlive the run: {list(map(processes.command_line, alive))}"
            time.sleep(0.05)
        return self.process.returncode, out, err

    def kill(self):
        """Kills the process alone; those that it has started must end by themselves."""
        self.send(signal.SIGKILL)
        assert self.wait()[0] == -signal.SIGKILL

    def finish(self):
        """Returns the stdout of a run that must succeed and print nothing to stderr."""
        status, out, err = self.wait()
        assert (status, err) == (0, ""), f"status {status}\n{out}\n{err}"
        return out

    def error(self):
        """Returns the message of a run that must end with status 2 and one line on stderr."""
        status, out, err = self.wait()
        assert status == 2, f"status {status}\n{out}\n{err}"
        return one_sentence(err)


def _program(patches):
    """Returns the arguments of Python that run `main.py` with patches."""
    if not patches:
        return ["main.py"]
    modules = {patch.partition("=")[0].rpartition(".")[0] for patch in patches}
    lines = [f"import {', '.join(sorted(modules))}", *patches, "import runpy"]
    return ["-c", "\n".join([*lines, "runpy.run_path('main.py', run_name='__main__')"])]


def one_sentence(err):
    """Returns the stderr of a command that must have printed one error message and nothing else."""
    assert err.startswith("vidformers: ") and err.endswith((".\n", "?\n")) and err.count("\n") == 1, err
    return err


def rows(workdir):
    """Returns the rows of metrics.jsonl without times and speeds."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name not in _TIMES} for line in lines]


def _events(workdir):
    """Returns (step, name, value) of each TensorBoard event without times and speeds."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = Path(workdir).glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # records of length, checksum of the length, event, checksum of the event
        (length,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        events += [
            (event.step, value.tag, value.simple_value) for value in event.summary.value if value.tag not in _TIMES
        ]
    return events


def checkpoint(workdir, step):
    """Returns ({name: array}, progress) of a checkpoint."""
    import jax
    from orbax.checkpoint import v1 as ocp

    path = Path(workdir).absolute() / "checkpoints" / str(step)
    with warnings.catch_warnings(action="ignore"):  # Orbax warns that it uses the sharding of the saved arrays
        tree = ocp.load_checkpointables(path)["state"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    progress = ocp.checkpointables_metadata(path).custom_metadata
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}, progress


def flip_a_bit(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _assert_same_answers(workdir, other) -> None:
    """Asserts that the answers are equal, with probabilities to rounding: the batch size follows the free memory."""
    texts = [(Path(folder) / "answers.jsonl").read_text() for folder in (workdir, other)]
    one, two = ([json.loads(line) for line in text.splitlines()] for text in texts)
    values = []
    for answers in (one, two):
        entries = [entry for answer in answers for entry in answer["labels"] + answer.pop("top")]
        values.append([entry.pop("probability") for entry in entries])
    assert one == two and one
    np.testing.assert_allclose(*values, rtol=1e-5)


def assert_same_run(workdir, other, evaluations=True, step=TINY["train.total_steps"]):
    """Asserts that metrics, events and the arrays of the checkpoint of `step` are equal bit for bit, and the answers.

    Args:
        workdir, other: folders of runs.
        evaluations: False compares the metrics of training alone.
        step: the step of the last checkpoint.
    """
    for read, is_training in ((rows, lambda row: "train/loss" in row), (_events, lambda event: "train/" in event[1])):
        one, two = ([x for x in read(folder) if evaluations or is_training(x)] for folder in (workdir, other))
        assert one == two and one
    if evaluations:
        _assert_same_answers(workdir, other)
    (arrays, progress), (other_arrays, other_progress) = checkpoint(workdir, step), checkpoint(other, step)
    if not evaluations:
        for name in ("due", "patience"):  # they follow the evaluations
            progress.pop(name), other_progress.pop(name)
    assert progress == other_progress and arrays.keys() == other_arrays.keys() and arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)

"""`python main.py` as a user starts it: in its own process and session, to be watched, stopped and killed."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from tiny import QUICK

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / os.environ.get("PYTEST_XDIST_WORKER", "")  # workers would read what others half wrote
FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
TIMING = {"time", "train/clips_per_second", "train/frames_per_second", "train/data_wait"}
BAD = "train/000007.mp4"
TINY = {
    "data.source": "csv",
    "data.frames": 4,
    "data.size": 16,
    "data.short_side": "18,20",
    "data.test_short_side": 18,
    "data.classes": "none",
    "data.flip_swaps": "((0, 1), (6, 7))",
    "data.workers": 0,
    "data.max_bad_fraction": 0.1,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 1,
    "model.unroll": 1,
    "model.patch_size": 8,
    "train.total_steps": 12,
    "train.batch_size": 8,
    "train.log_every_steps": 2,
    "train.eval_every_steps": 4,
    "optim.warmup_steps": 2,
    "eval.clips": 2,
    "eval.batch_size": 8,
    "checkpoint.every_steps": 3,
}


def render(folder):
    """A data set of 40 training and 10 validation videos; BAD of them will not decode. Returns its folder."""
    from input_pipeline.motion_clips import MotionClips, ensure

    root = ensure(folder, MotionClips(train_pairs=20, val_pairs=5, size=32, frames=8), report=lambda _: None, workers=1)
    (root / BAD).write_bytes((root / BAD).read_bytes()[:500])
    return root


def arguments(data, workdir, fields=(), mode="train"):
    """The command line of a tiny run; `fields` override those of TINY."""
    fields = {"data.root": data, **TINY, **dict(fields)}
    return [
        f"--config={ROOT}/configs/demo.py:vit",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


class Run:
    """A run that has been started. `limit`: bytes that a file it writes may have; `environment`: more variables."""

    def __init__(self, arguments, devices=1, limit=None, environment=None):
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        env |= {
            "XDG_CACHE_HOME": str(CACHE),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": " ".join([f"--xla_force_host_platform_device_count={devices}", *FLAGS]),
            **(environment or {}),
        }
        capped = [] if limit is None else ["prlimit", f"--fsize={limit}"]
        self.process = subprocess.Popen(
            [*capped, sys.executable, "main.py", *arguments],
            cwd=ROOT,
            env=env,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def until(self, condition):
        """Returns what `condition()` gives as soon as it is true of the live run."""
        end = time.monotonic() + 180
        while not (found := condition()):
            assert self.process.poll() is None, "ended too early:\n" + "".join(self.process.communicate())
            assert time.monotonic() < end, "the moment never came"
            time.sleep(0.002)
        return found

    def send(self, number, group=False):
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self):
        """(exit status, stdout, stderr), once nothing of the run's session is alive."""
        out, err = self.process.communicate(timeout=180)
        deadline = time.monotonic() + 10
        while left := _alive(self.process.pid):
            assert time.monotonic() < deadline, f"processes outlive the run: {left}"
            time.sleep(0.05)
        return self.process.returncode, out, err

    def kill(self):
        self.send(signal.SIGKILL)
        assert self.end()[0] == -signal.SIGKILL

    def finish(self):
        """stdout of a run that must end well and say nothing on stderr."""
        code, out, err = self.end()
        assert (code, err) == (0, ""), f"status {code}\n{out}\n{err}"
        return out

    def refused(self):
        """The one sentence of a run that must end with status 2."""
        code, out, err = self.end()
        assert code == 2, f"status {code}\n{out}\n{err}"
        return one_sentence(err)


def one_sentence(err):
    assert err.startswith("vidformers: ") and err.endswith((".\n", "?\n")) and err.count("\n") == 1, err
    return err


def _alive(session):
    """Command lines of the session's processes, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


def rows(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name not in TIMING} for line in lines]


def events(workdir):
    """(step, name, value) of the TensorBoard events, without what depends on the clock."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = Path(workdir).glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        found += [
            (event.step, value.tag, value.simple_value) for value in event.summary.value if value.tag not in TIMING
        ]
    return found


def saved(workdir):
    """Names of what lies in the folder of checkpoints, halves of saves included."""
    return sorted(path.name for path in (Path(workdir) / "checkpoints").glob("*"))


def checkpoint(workdir, step):
    """({name: array}, progress) of a checkpoint, read anew from the disk."""
    import jax
    from orbax.checkpoint import v1 as ocp

    path = Path(workdir).absolute() / "checkpoints" / str(step)
    with warnings.catch_warnings(action="ignore"):  # that the arrays lie as they lay when saved
        tree = ocp.load_checkpointables(path)["state"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    progress = ocp.checkpointables_metadata(path).custom_metadata
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}, progress


def assert_same_run(one, other, evaluations=True, step=TINY["train.total_steps"]):
    """Lines, events and the arrays of the last checkpoint agree bit for bit, perhaps but for evaluations."""
    assert [row for row in rows(one) if evaluations or "train/loss" in row] == [
        row for row in rows(other) if evaluations or "train/loss" in row
    ]
    assert [event for event in events(one) if evaluations or "train/" in event[1]] == [
        event for event in events(other) if evaluations or "train/" in event[1]
    ]
    (arrays, progress), (others, other_progress) = checkpoint(one, step), checkpoint(other, step)
    assert progress == other_progress and arrays.keys() == others.keys() and arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


def copy(workdir, to):
    shutil.copytree(workdir, to)
    return to

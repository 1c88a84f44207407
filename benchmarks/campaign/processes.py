"""Processes of a run: starting it, finding those that belong to it, their memory, and ending it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_ENDING_SECONDS = 10.0  # a process that is killed while it imports libraries ends its workers' imports last
# Small enough for a run in seconds, with saves and evaluations that can be met.
TINY = {
    "data.source": "csv",
    "data.frames": 4,
    "data.size": 16,
    "data.short_side": "18,20",
    "data.test_short_side": 18,
    "data.classes": "none",
    "data.flip_swaps": "((0, 1), (6, 7))",
    "data.workers": 0,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 1,
    "model.unroll": 1,
    "model.patch_size": 8,
    "train.total_steps": 12,
    "train.batch_size": 8,
    "train.log_every_steps": 1,
    "train.eval_every_steps": 4,
    "optim.warmup_steps": 2,
    "eval.clips": 2,
    "eval.batch_size": 8,
    "checkpoint.every_steps": 3,
}


def render(folder: Path) -> Path:
    """Returns a folder with 40 training and 10 validation videos, which are rendered if they are not there."""
    from input_pipeline.motion_clips import MotionClips, ensure

    return ensure(folder, MotionClips(train_pairs=20, val_pairs=5, size=32, frames=8), report=lambda _: None, workers=1)


def flags(data: Path, workdir: Path, fields: Mapping[str, Any] | None = None, mode: str = "train") -> list[str]:
    """Returns the flags of `main.py` for a tiny run. `fields`, such as `data.workers`, override those of TINY."""
    values = {"data.root": data, **TINY, **(fields or {})}
    return [
        f"--config={ROOT}/configs/demo.py:vit",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


class Run:
    """A process that runs `main.py` in a session of its own. stdout and stderr go to the file `output`."""

    def __init__(self, arguments: list[str], output: Path, cache: Path):
        self.output = output
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *arguments],
                cwd=ROOT,
                env=os.environ
                | {
                    "XDG_CACHE_HOME": str(cache),
                    "PYTHONUNBUFFERED": "1",
                    "JAX_PLATFORMS": "cpu",
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def wait_until(self, condition, seconds: float = 120.0) -> bool:
        """Waits until `condition()` holds. Returns False if the process ended before, or the time was over."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def members(self) -> list[int]:
        """Returns the ids of the processes of the session that are alive."""
        return session_members(self.process.pid)

    def workers(self) -> list[int]:
        """Returns the ids of the decoding processes."""
        return [pid for pid in self.members() if "--multiprocessing-fork" in command_line(pid)]

    def kill(self, alone: bool) -> None:
        """Sends SIGKILL to the process alone, or to all processes of the session at once."""
        for pid in [self.process.pid] if alone else self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def left_after(self, seconds: float) -> list[int]:
        """Waits until all processes of the session have ended. Returns those that live on, which are then killed."""
        deadline = time.monotonic() + seconds
        while (members := self.members()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill(alone=False)
        self.process.wait()
        return members

    def remains(self, names: set[str]) -> tuple[list[int], set[str]]:
        """Waits until a killed run has ended. Returns the processes that live on, and which of `names` are left."""
        left = self.left_after(_ENDING_SECONDS)
        return left, {name for name in names if Path(name).exists()}

    def wait(self, seconds: float) -> int | None:
        """Returns the exit status, None if the run is not over in time and was killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.left_after(0)
            return None


def session_members(session: int) -> list[int]:
    """Returns the ids of the processes of a session, without zombies."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _read(stat).rpartition(b")")[2].split()
        if len(fields) > 3 and int(fields[3]) == session and fields[0] != b"Z":
            members.append(int(stat.parent.name))
    return members


def command_line(pid: int) -> str:
    """Returns the command line of a process, '' if it has ended."""
    return _read(f"/proc/{pid}/cmdline").decode(errors="replace").replace("\0", " ")


def shared_memory(pids: list[int]) -> set[str]:
    """Returns the names in /dev/shm that the processes have mapped: segments and semaphores."""
    lines = [line for pid in pids for line in _read(f"/proc/{pid}/maps").decode(errors="replace").splitlines()]
    return {"/dev/shm/" + line.partition("/dev/shm/")[2].split()[0] for line in lines if "/dev/shm/" in line}


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process, 0 if it has ended."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended
        return b""

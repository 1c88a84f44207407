"""Trains the rows of a table one after another, and keeps the result of each in a file.

A run is one `main.py --mode=train` in its own workdir. Its last evaluation is by the section `eval` of its config, so
that no other evaluation follows. A run that was stopped continues exactly (`vidformers.training.train`). The file
`rowN-seedS.json` beside the workdir holds the arguments of a run as soon as the run starts, and its result when it is
finished. A finished run is never started again, and neither is a run that equals a finished one of another table.
"""

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.tables.rows import Table
from configs.loading import FlagError, load, read_flags, require
from input_pipeline.files import write_text
from input_pipeline.stop_signals import handled_signals
from vidformers.training.metrics import read_metrics
from vidformers.training.workdir import with_default_sections

ROOT = Path(__file__).resolve().parents[2]
RESULT = {"row", "seed", "top1", "top5", "protocol", "seconds", "date", "devices", "commit"}  # keys of a finished run
PROGRAM = [sys.executable, "main.py"]
# Replaces itself by the program in its arguments, to which the kernel sends SIGTERM when the parent is killed: the run
# then saves and ends. 1 is PR_SET_PDEATHSIG of Linux.
_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


class Failed(Exception):
    """A run ended with another status than 0. `status` is that of this command."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Job(NamedTuple):
    """One run: a row and a seed."""

    table: Table
    number: int  # of the row, from 1 on
    seed: int
    arguments: tuple[str, ...]  # of main.py, without --workdir
    folder: Path  # of the results

    @property
    def name(self) -> str:
        return f"row{self.number}-seed{self.seed}"

    @property
    def workdir(self) -> Path:
        return self.folder / self.name

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def command(self) -> str:
        """The command of this run, for a shell."""
        return shlex.join(["python", "main.py", *self.arguments, f"--workdir={self.workdir}"])


def make_jobs(
    table: Table, numbers: Sequence[int], seeds: Sequence[int], flags: Sequence[str], folder: Path, small: bool = False
) -> list[Job]:
    """Returns the runs of these rows with these seeds, row by row.

    Args:
        flags: flags --config.section.field=VALUE for all rows.
        folder: where workdirs and results lie.
        small: the rows of the small form, on motion clips.
    Raises:
        FlagError: a flag is wrong, or sets a field that a row sets.
    """
    jobs = []
    for number in numbers:
        own = row_arguments(table, number, small)
        fields = {argument.partition("=")[0] for argument in own}
        for flag in flags:
            require(
                flag.partition("=")[0] not in {*fields, "--config.seed"},
                f"{flag} cannot be given: row {number} of {table.name} sets this field.",
            )
        for seed in seeds:
            arguments = (*own, *flags, f"--config.seed={seed}")
            if seed == seeds[0]:
                read_flags(arguments, {})  # refuses what is wrong before anything runs
            jobs.append(Job(table, number, seed, arguments, folder))
    return jobs


def row_arguments(table: Table, number: int, small: bool) -> list[str]:
    """Returns the arguments of main.py that a row sets."""
    row = table.rows[number - 1]
    file, colon, name = row.config.partition(":")
    if not small:
        clips, crops = table.views_of(row).split("x")
        fields = [*row.overrides, f"eval.clips={clips}", f"eval.crops={crops}"]
        return [f"--config=configs/{file}.py{colon}{name}", *(f"--config.{field}" for field in fields)]
    assert table.small is not None and row.small is not None
    model = load(f"configs/{file}.py{colon}{name}").model.name
    fields = [*table.small.overrides, *row.small]
    return [f"--config=configs/demo.py:{model}", *(f"--config.{field}" for field in fields)]


def read_result(job: Job) -> dict:
    """Returns the content of the file of a run: {} before its start, and with 'top1' after its end.

    Raises:
        FlagError: the file is damaged, or holds a run with other arguments.
    """
    if not job.file.exists():
        return {}
    try:
        content = json.loads(job.file.read_text(encoding="utf-8"))
        arguments = list(content["arguments"])
        if "top1" in content and (RESULT - content.keys() or not 0 <= content["top1"] <= content["top5"] <= 1):
            raise ValueError
    except (ValueError, LookupError, TypeError):
        raise FlagError(f"{job.file} is damaged. Remove it to train row {job.number} again.") from None
    before, now = set(arguments), set(job.arguments)
    if before != now:
        changed = sorted(before ^ now, key=lambda argument: (argument.partition("=")[0], argument not in before))
        raise FlagError(
            f"{job.file} holds a run of row {job.number} with other fields: {_change(changed[0], before, now)}. Give "
            "the flags of that run, or another --out."
        )
    return content


def _change(argument: str, before: set[str], now: set[str]) -> str:
    """Returns what was and what is now the value of the field of an argument."""
    field = argument.partition("=")[0]
    old, new = (
        next((each.partition("=")[2] for each in arguments if each.partition("=")[0] == field), "not given")
        for arguments in (before, now)
    )
    return f"{field} was {old} and is {new}"


def run(job: Job, report=print) -> dict:
    """Trains one row, unless it is finished, and returns its result.

    Raises:
        FlagError: the folder holds another run.
        Failed: the run ended with an error or was stopped.
    """
    content = read_result(job)
    if "top1" in content:
        return content
    job.folder.mkdir(parents=True, exist_ok=True)
    with _locked(job, report):
        content = read_result(job)  # another command may have finished the run since
        return content if "top1" in content else _run(job, content, report)


def _run(job: Job, content: dict, report) -> dict:
    """Trains one row that is not finished, and returns its result. `content` is that of the file of the run."""
    content = {"arguments": list(job.arguments)} | {
        key: content[key] for key in ("seconds", "machine") if key in content
    }
    metrics = _final_metrics(job) or _equal_run(job)
    if metrics is None:
        report(f"{_about(job)}: {job.command}")
        write_text(job.file, json.dumps(content) + "\n")
        started = time.monotonic()
        status = _train(job)
        content["seconds"] = round(content.get("seconds", 0.0) + time.monotonic() - started, 1)
        content["machine"] = _machine()
        write_text(job.file, json.dumps(content) + "\n")
        if status != 0:
            raise Failed(f"{_about(job)} ended with status {status}. The same command continues.", status)
        metrics = _final_metrics(job)
        require(metrics is not None, f"{job.workdir} holds no finished run. Remove it to train row {job.number} again.")
    else:
        report(f"{_about(job)}: {metrics.get('same_as', job.workdir)} is this run, and finished.")
    names = {"table": job.table.name, "row": job.number, "label": _label(job), "seed": job.seed}
    content = names | metrics | content
    write_text(job.file, json.dumps(content) + "\n")
    return content


def _machine() -> str:
    from benchmarks.measure import processor  # imports JAX and the trainer

    return f"{os.cpu_count()} cores of {processor()}"


def _label(job: Job) -> str:
    return job.table.rows[job.number - 1].label


def _about(job: Job) -> str:
    return f"{job.table.name}, row {job.number} ({_label(job)}), seed {job.seed}"


@contextlib.contextmanager
def _locked(job: Job, report) -> Iterator[None]:
    """Holds the lock of a run. Waits while another command or process has the run.

    The lock of the command is a file beside the workdir. A run has its own in the workdir, which it keeps when the
    command that started it is killed, until it has saved.
    """
    with open(job.folder / f"{job.name}.lock", "a") as own:
        _lock(own, job, report)
        if (job.workdir / ".lock").exists():
            with open(job.workdir / ".lock", "a") as file:
                _lock(file, job, report)
        yield


def _lock(file, job: Job, report) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(f"{_about(job)}: waits for the process that trains in {job.workdir}.")
        fcntl.flock(file, fcntl.LOCK_EX)


def _equal_run(job: Job) -> dict | None:
    """Returns the result of a finished run of another row, in a folder beside this one, whose config is the same."""
    config = read_flags(job.arguments, {})[0].to_dict()
    for path in sorted(job.folder.parent.glob("*/row*-seed*.json")):
        with contextlib.suppress(ValueError, LookupError, TypeError):  # a damaged file, or a config of an older version
            result = json.loads(path.read_text(encoding="utf-8"))
            if "top1" in result and read_flags(result["arguments"], {})[0].to_dict() == config:
                own = ("table", "row", "label", "seed", "arguments")
                kept = {name: value for name, value in result.items() if name not in own}
                return {"same_as": f"{path.parent.name}/{path.stem}"} | kept
    return None


def _train(job: Job) -> int:
    """Runs `main.py` until it ends, and returns its exit status. Signals to this process stop it after a checkpoint."""
    prefix = [sys.executable, "-c", _WITH_PARENT] if sys.platform == "linux" else []
    command = [*prefix, *PROGRAM, *job.arguments, f"--workdir={job.workdir}"]
    # In a process group of its own, the run gets the signal of a terminal once, from here. A second signal would end it
    # before it has saved.
    with subprocess.Popen(command, cwd=ROOT, process_group=0) as process:
        with _forwarded(process):
            status = process.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _forwarded(process: subprocess.Popen) -> Iterator[None]:
    """Sends SIGINT, SIGTERM and SIGHUP on to a process, as SIGTERM."""
    handlers = {
        number: signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM)) for number in handled_signals()
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _final_metrics(job: Job) -> dict | None:
    """Returns the result that the workdir of a finished run holds, or None. A printed command may have made the run.

    Raises:
        FlagError: the workdir holds a run with another config.
    """
    path = job.workdir / "run.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before = with_default_sections(stored["config"])
    except (ValueError, LookupError, TypeError):
        raise FlagError(f"{path} is damaged: it does not describe a run. Remove {job.workdir}.") from None
    config = with_default_sections(read_flags(job.arguments, {})[0].to_dict())
    for section in ("seed", "init", "model", "data", "optim", "train", "eval"):
        require(
            before.get(section) == config[section],
            f"{job.workdir} holds a run of row {job.number} with another config (section {section}). Give the flags "
            "of that run, or another --out.",
        )
    protocol = f"{config['eval']['clips']}x{config['eval']['crops']}"
    rows = read_metrics(job.workdir)
    for row in reversed(rows):
        if row["step"] == stored.get("total_steps") and f"val/top1@{protocol}" in row:
            return {
                "top1": row[f"val/top1@{protocol}"],
                "top5": row[f"val/top5@{protocol}"],
                "protocol": protocol,
                "steps": row["step"],
                "seconds": round(row["time"] - rows[0]["time"], 1),  # of a run that another command made
                "date": datetime.date.fromtimestamp(row["time"]).isoformat(),
                "devices": stored.get("devices"),
                "commit": stored.get("commit"),
            }
    return None

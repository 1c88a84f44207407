"""SIGKILL at a random moment of a run with 0, 1 or 2 workers. Continued, the run computes what it would have computed.

Every other kill takes all processes of the run at once, the others the main process alone, whose workers must end by
themselves. In one phase a worker is killed instead: the run must then end with a sentence. About a third of the runs
have several labels, balanced batches, class weights, a layer decay and a patience. A case fails if a process or a name
in /dev/shm is left, if the continued run does not succeed, or if a metric of any step is another one.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from benchmarks.campaign.processes import Run, flags, render, shared_memory

COUNT, SECONDS, BYTES = 100, 300.0, 4 * 2**30
PHASES = ("starting", "compiling", "training", "saving", "evaluating", "worker")
SEVERAL_LABELS = {
    "data.labels": "many",
    "data.balance": 0.5,
    "train.class_weights": 0.5,
    "train.patience": 9,
    "optim.layer_decay": 0.7,
}
_TIMES = {"time", "train/clips_per_second", "train/frames_per_second", "train/data_wait", "train/mfu"}


def case_set(number: int) -> str:
    return f"{number % 3} workers" + (", several labels" if _fields(number) else "")


def _fields(number: int) -> dict:
    return SEVERAL_LABELS if number // 36 % 2 else {}


def prepare(folder: Path) -> None:
    render(folder / "data")
    for fields in ({}, SEVERAL_LABELS):
        reference, workdir = _reference(folder, fields), folder / "reference"
        if not reference.exists():
            shutil.rmtree(workdir, ignore_errors=True)
            run = Run(flags(folder / "data", workdir, fields), folder / "reference.txt", folder / "cache")
            assert run.wait(SECONDS) == 0, run.output.read_text()
            reference.write_text(json.dumps(_metrics(workdir)))


def _reference(folder: Path, fields: dict) -> Path:
    return folder / ("several.json" if fields else "reference.json")


def run_case(number: int, folder: Path) -> dict:
    workdir, rng = folder / "run", random.Random(number)
    shutil.rmtree(workdir, ignore_errors=True)
    workers, phase, alone = number % 3, PHASES[number // 3 % len(PHASES)], number // 3 // len(PHASES) % 2 == 1
    if phase == "worker" and not workers:
        phase = "training"
    arguments = flags(folder / "data", workdir, {"data.workers": workers, **_fields(number)})
    run = Run(arguments, folder / "killed.txt", folder / "cache")
    met = run.wait_until(_moment(phase, run, workdir, rng))
    names, steps = shared_memory(run.members()), len(_metrics(workdir))
    problems = []
    if phase == "worker" and met:
        problems += _kill_worker(run, rng)
    else:
        run.kill(alone)
    left, names = run.remains(names)
    continued = Run(arguments, folder / "continued.txt", folder / "cache")
    status = continued.wait(120.0)
    if left:
        problems.append("processes are left")
    if names:
        problems.append("shared memory is left")
    if status != 0:
        problems.append(f"the continued run ended with status {status}")
    elif _metrics(workdir) != json.loads(_reference(folder, _fields(number)).read_text()):
        problems.append("other metrics")
    return {
        "outcome": "; ".join(problems) or ("same metrics" if met else "same metrics, killed after its end"),
        "failed": bool(problems),
        "phase": phase,
        "rows": steps,
        "processes_left": len(left),
        "shared_memory_names_left": len(names),
    }


def _moment(phase: str, run: Run, workdir: Path, rng: random.Random):
    """Returns a condition that holds when the run should be killed."""
    delays = {"starting": 3.0, "compiling": 2.0, "training": 0.1, "saving": 0.01, "evaluating": 0.3, "worker": 1.0}
    step, delay = rng.randrange(1, 12), rng.uniform(0, delays[phase])
    folder, since = workdir / "checkpoints", []

    def reached() -> bool:
        if phase == "starting":
            return True
        if phase == "compiling":
            return folder.is_dir()
        if phase == "saving":  # a save has a temporary name until it is complete
            return folder.is_dir() and any(not path.name.isdigit() for path in folder.iterdir())
        if phase == "worker":
            return bool(run.workers())
        rows = _lines(workdir)
        return len(rows) >= step if phase == "training" else any('"step": 4,' in row for row in rows)

    def is_due() -> bool:
        if not since and reached():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= delay

    return is_due


def _kill_worker(run: Run, rng: random.Random) -> list[str]:
    """Kills a worker. Returns what is wrong with the end of the run."""
    workers = run.workers()
    if workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
    status, output = run.wait(60.0), run.output.read_text(errors="replace")
    if status == 0:  # the training was over
        return []
    if status is None:
        return ["the run hangs after the end of a worker"]
    sentence = output.count("A decoding process has ended") == 1 and "Traceback" not in output
    return [] if status == 2 and sentence else [f"status {status} after the end of a worker"]


def _lines(workdir: Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _metrics(workdir: Path) -> list[dict]:
    """Returns the complete rows of metrics.jsonl by step, without times and speeds."""
    rows = []
    for line in _lines(workdir):
        try:
            rows.append({name: x for name, x in json.loads(line).items() if name not in _TIMES})
        except json.JSONDecodeError:
            break
    return sorted(rows, key=lambda row: (row["step"], sorted(row)))

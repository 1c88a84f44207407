"""The memory of a long run: 1,500 training steps with workers, and the prediction of 2,000 videos.

The resident memory of all processes of the run is read while it runs. After the first 200 steps or videos, a line
through the readings must grow by less than 5 MB per 1,000 steps, and by less than 1 MB per 1,000 predictions.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.campaign.processes import Run, flags, render, resident_bytes

COUNT, SECONDS, BYTES = 2, 1500.0, 2**30
STEPS, PREDICTIONS, SKIPPED = 1500, 2000, 200
_SETS = ("steps", "predictions")
_MAX_MB_PER_1000 = {"steps": 5.0, "predictions": 1.0}


def case_set(number: int) -> str:
    return _SETS[number]


def prepare(folder: Path) -> None:
    render(folder / "data")


def run_case(number: int, folder: Path) -> dict:
    data, workdir, name = folder / "data", folder / "run", _SETS[number]
    if name == "steps":
        shutil.rmtree(workdir, ignore_errors=True)
        fields = {"train.total_steps": STEPS, "train.eval_every_steps": "none", "checkpoint.every_steps": 100}
        arguments = flags(data, workdir, {"data.workers": 2, **fields})
        progress = workdir / "metrics.jsonl"
    else:
        if not (workdir / "checkpoints").is_dir():
            run = Run(flags(data, workdir), folder / "training.txt", folder / "cache")
            assert run.wait(300.0) == 0, run.output.read_text()
        _link_videos(data / "train", folder / "videos")
        progress = folder / "predictions.jsonl"
        progress.unlink(missing_ok=True)
        arguments = [*flags(data, workdir, mode="predict"), f"--video={folder}/videos", f"--out={progress}"]
    return _measure(Run(arguments, folder / f"{name}.txt", folder / "cache"), progress, name)


def _link_videos(source: Path, folder: Path) -> None:
    """Gives the videos of `source` PREDICTIONS names in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    videos = sorted(source.iterdir())
    for number in range(PREDICTIONS):
        video = videos[number % len(videos)]
        (folder / f"{number:06}{video.suffix}").hardlink_to(video)


def _measure(run: Run, progress: Path, name: str) -> dict:
    """Returns how the resident memory of the run grows with the lines of the file `progress`."""
    readings = []
    while run.process.poll() is None:
        done = progress.read_bytes().count(b"\n") if progress.exists() else 0
        readings.append((done, sum(map(resident_bytes, run.members())) / 1e6))
        time.sleep(0.1)
    total = STEPS if name == "steps" else PREDICTIONS
    # Without the last evaluation and the pictures, which follow the last step.
    steps, megabytes = np.array([reading for reading in readings if SKIPPED <= reading[0] < total and reading[1]]).T
    complete = run.process.returncode == 0 and steps.max() > 0.8 * total
    growth = float(np.polyfit(steps / 1000, megabytes, 1)[0])
    limit = _MAX_MB_PER_1000[name]
    (run.output.parent / f"{name}.json").write_text(json.dumps(readings))
    outcome = f"under {limit:g} MB per 1,000" if growth < limit else f"grows by {growth:.1f} MB per 1,000"
    return {
        "outcome": outcome if complete else f"ended with status {run.process.returncode} after {int(steps.max())}",
        "failed": growth >= limit or not complete,
        "mb_per_1000": round(growth, 3),
        "peak_mb": round(float(megabytes.max()), 1),
        "readings": len(steps),
    }

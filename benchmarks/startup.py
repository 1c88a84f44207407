"""Time from the start of a demo run to its first step: of the first start, and of later starts with compiled programs.

Command: python -m benchmarks.startup [--rounds=3] [--config=configs/demo.py]
Starts `main.py` as a user does, with a compilation cache of its own, until it logs its first step. Prints one JSON line
with the seconds of each start. The demo's clips are rendered before, if they are missing.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import parse
from benchmarks.measure import report
from configs.loading import load
from input_pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent


def start(config: str, folder: str, number: int) -> float:
    """Starts a run. Returns the seconds until its first step is logged."""
    workdir = Path(folder) / f"run{number}"
    command = [
        sys.executable,
        "main.py",
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.train.log_every_steps=1",
    ]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": folder}, stdout=subprocess.DEVNULL
    ) as run:
        metrics = workdir / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size):
            if run.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with status {run.returncode} before its first step.")
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        run.kill()
    return seconds


def main():
    args = parse(__doc__, rounds=3, config="configs/demo.py")
    _ = Pipeline(**load(args.config).to_dict()["data"]).val_manifest  # reading the manifest renders missing clips
    with tempfile.TemporaryDirectory(dir=ROOT / "data" if (ROOT / "data").is_dir() else None) as folder:
        first, *later = (start(args.config, folder, number) for number in range(1 + args.rounds))
    report(
        benchmark="startup",
        config=args.config,
        first_seconds=first,
        second_seconds=statistics.median(later),
        second_all=later,
    )


if __name__ == "__main__":
    main()

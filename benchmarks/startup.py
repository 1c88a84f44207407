"""How long a run of the demo takes to its first step: the first start, and the second, which finds compiled programs.

Command: python -m benchmarks.startup [--rounds=3] [--config=configs/demo.py]
Starts `main.py` as a user does, with a cache of its own, until it logs its first step. One JSON line: seconds of each
start. The demo's clips are rendered before, if they are not there.
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
from configs import sheet as configs
from input_pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent


def start(config: str, folder: str, number: int) -> float:
    """Seconds until the run has made a step."""
    workdir = Path(folder) / f"run{number}"
    command = [
        sys.executable,
        "main.py",
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.train.log_every_steps=1",
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": folder}, stdout=subprocess.DEVNULL
    ) as run:
        metrics = workdir / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size):
            if run.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with status {run.returncode} before its first step.")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        run.kill()
    return seconds


def main():
    args = parse(__doc__, rounds=3, config="configs/demo.py")
    Pipeline(**configs.load(args.config).to_dict()["data"]).val_manifest  # to read it renders what is not there
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

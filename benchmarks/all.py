"""Runs all speed benchmarks one after another and draws their charts.

Command: python -m benchmarks.all [--peer-python=PYTHON] [--only=NAME,NAME] [--out=benchmarks/results]
Each benchmark runs in a process of its own, so that none finds memory or a device in use. The lines go to
DEVICE-DATE.jsonl, each with the commit, and the charts beside it. Batch sizes and types are chosen for a CPU or a GPU.
PYTHON is an interpreter with torch and transformers; without it the comparisons are left out. A benchmark that fails is
reported, and the others continue. Not included are `benchmarks.input` and `benchmarks.soak`, which need videos, and
`benchmarks.relevance` and `benchmarks.finetune`, which train.
"""

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.arguments import parse

ROOT = Path(__file__).resolve().parent.parent


def measurements(gpu: bool, peer: str | None) -> dict[str, list[str]]:
    """Returns {name: arguments of `python -m`}."""
    comparison = [f"--peer-python={peer}"] if peer else []
    cpu_flags = [] if gpu else ["--dtype=float32", "--batches=1", "--product=2048", "--steps=3"]
    commands = {
        "throughput": ["benchmarks.throughput", *cpu_flags, *comparison],
        "timesformer_train": ["benchmarks.timesformer", "--mode=train", *comparison],
        "timesformer_eval": ["benchmarks.timesformer", "--mode=eval", *comparison],
        "models": ["benchmarks.models"] + (["--dtype=bfloat16", "--batch=8"] if gpu else []),
        "remat": ["benchmarks.remat"] + (["--dtype=bfloat16", "--batch=8"] if gpu else []),
        "startup": ["benchmarks.startup"],
        "attention": ["benchmarks.attention"] + (["--dtype=bfloat16", "--batch=32"] if gpu else []),
        "folds": ["benchmarks.folds"] + (["--dtype=bfloat16", "--batch=32"] if gpu else []),
        "inference": ["benchmarks.inference"] + (["--dtype=bfloat16", "--batch=16"] if gpu else []),
        "growth": ["benchmarks.growth"],
        "collectives": ["benchmarks.collectives"],
        "context": ["benchmarks.context"],
        "pipeline": ["benchmarks.pipeline"],
    }
    if gpu or not peer:  # on a GPU `throughput` includes the comparison
        del commands["timesformer_train"], commands["timesformer_eval"]
    return commands


def run(name: str, command: list[str], out: Path, commit: str) -> list[dict]:
    """Runs one benchmark. Returns its lines, and appends each to the file `out` as soon as it is printed."""
    started, rows = time.perf_counter(), []
    with (
        open(out, "a", encoding="utf-8") as file,
        subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        for line in process.stdout:
            if line.startswith("{"):
                rows.append(json.loads(line) | {"commit": commit})
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(
        f"{name}: {len(rows)} lines in {time.perf_counter() - started:.0f} s"
        + (f", then it failed with status {process.returncode}" if process.returncode else ""),
        flush=True,
    )
    return rows


def draw(rows: list[dict], stem: Path) -> None:
    """Draws how the cost of each scheme grows, and the clips per second of every model."""
    from matplotlib.figure import Figure

    from benchmarks import growth

    growth_rows = [row for row in rows if row["benchmark"] == "growth"]
    if growth_rows:
        growth.draw(growth_rows, stem)
    speeds = {
        mode: [row for row in rows if row["benchmark"] == "throughput" and row.get("mode") == mode and row.get("batch")]
        for mode in ("train", "eval")
    }
    if any(speeds.values()):
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, (mode, mode_rows) in zip(panels, speeds.items(), strict=True):
            names = [row["model"] for row in mode_rows]
            bars = panel.barh(
                names,
                [row["clips_per_second"] for row in mode_rows],
                color=["tab:gray" if name.startswith("Hugging") else "tab:blue" for name in names],
            )
            panel.bar_label(bars, [f"{row['clips_per_second']:.3g}" for row in mode_rows], padding=3, fontsize=8)
            panel.set(title=mode, xlabel="clips per second")
            panel.margins(x=0.15)
            panel.invert_yaxis()
        figure.suptitle(f"{speeds['train'][0]['dtype']}, on {speeds['train'][0]['device']}")
        figure.savefig(f"{stem}-throughput.png", dpi=110)


def main():
    args = parse(__doc__, peer_python=None, only=None, out=str(ROOT / "benchmarks" / "results"))
    out = Path(args.out)
    # In another process: this one must not hold the device while the benchmarks run.
    query = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    answer = subprocess.run([sys.executable, "-c", query], stdout=subprocess.PIPE, text=True, check=True)
    backend, _, device = answer.stdout.strip().partition(" ")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commands = measurements(backend == "gpu", args.peer_python)
    if args.only:
        unknown = set(args.only.split(",")) - set(commands)
        if unknown:
            raise SystemExit(
                f"--only={args.only}: there is no {', '.join(sorted(unknown))}. Choose from {', '.join(commands)}."
            )
        commands = {name: commands[name] for name in args.only.split(",")}
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{device.replace(' ', '-').lower()}-{datetime.date.today().isoformat()}"
    rows = []
    for name, command in commands.items():
        rows += run(name, command, Path(f"{stem}.jsonl"), commit.stdout.strip())
    draw(rows, stem)


if __name__ == "__main__":
    main()

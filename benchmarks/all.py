"""Every measurement of speed, one after the other, and their charts.

Command: python -m benchmarks.all [--peer-python=PYTHON] [--only=NAME,NAME] [--out=benchmarks/results]
Each is a program of its own, started in a process of its own, so that none finds memory or a device in use. Their lines
go to DEVICE-DATE.jsonl, each with the commit, and charts beside it. What depends on the kind of device (batches, types)
is set as it suits a CPU or a GPU. PYTHON is an interpreter with torch and transformers; without it the comparisons are
left out. A measurement that fails is named, and the others go on. Those of the input pipeline are apart
(`benchmarks.input`, `benchmarks.soak`), since they need videos; `benchmarks.relevance` and `benchmarks.finetune` train.
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
    """Name -> arguments of `python -m`."""
    beside = [f"--peer-python={peer}"] if peer else []
    kind = [] if gpu else ["--dtype=float32", "--batches=1", "--product=2048", "--steps=3"]
    measured = {
        "throughput": ["benchmarks.throughput", *kind, *beside],
        "timesformer_train": ["benchmarks.timesformer", "--mode=train", *beside],
        "timesformer_eval": ["benchmarks.timesformer", "--mode=eval", *beside],
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
    if gpu or not peer:  # on a GPU beside the peers in `throughput`
        del measured["timesformer_train"], measured["timesformer_eval"]
    return measured


def run(name: str, command: list[str], out: Path, commit: str) -> list[dict]:
    """The lines of one measurement, each also added to `out` as soon as it is there."""
    began, rows = time.perf_counter(), []
    with (
        open(out, "a", encoding="utf-8") as file,
        subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        for line in process.stdout:
            if line.startswith("{"):
                rows.append(json.loads(line) | {"commit": commit})
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(
        f"{name}: {len(rows)} lines in {time.perf_counter() - began:.0f} s"
        + (f", then it failed with status {process.returncode}" if process.returncode else ""),
        flush=True,
    )
    return rows


def draw(rows: list[dict], stem: Path) -> None:
    """How each scheme grows, and the clips a second of every model."""
    from matplotlib.figure import Figure

    from benchmarks import growth

    grown = [row for row in rows if row["benchmark"] == "growth"]
    if grown:
        growth.draw(grown, stem)
    speeds = {
        mode: [row for row in rows if row["benchmark"] == "throughput" and row.get("mode") == mode and row.get("batch")]
        for mode in ("train", "eval")
    }
    if any(speeds.values()):
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, (mode, found) in zip(panels, speeds.items(), strict=True):
            names = [row["model"] for row in found]
            bars = panel.barh(
                names,
                [row["clips_per_second"] for row in found],
                color=["tab:gray" if name.startswith("Hugging") else "tab:blue" for name in names],
            )
            panel.bar_label(bars, [f"{row['clips_per_second']:.3g}" for row in found], padding=3, fontsize=8)
            panel.set(title=mode, xlabel="clips a second")
            panel.margins(x=0.15)
            panel.invert_yaxis()
        figure.suptitle(f"{speeds['train'][0]['dtype']}, on {speeds['train'][0]['device']}")
        figure.savefig(f"{stem}-throughput.png", dpi=110)


def main():
    args = parse(__doc__, peer_python=None, only=None, out=str(ROOT / "benchmarks" / "results"))
    out = Path(args.out)
    # Asked in a process that ends: a device that is held here would be in the way.
    question = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    asked = subprocess.run([sys.executable, "-c", question], stdout=subprocess.PIPE, text=True, check=True)
    backend, _, device = asked.stdout.strip().partition(" ")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    chosen = measurements(backend == "gpu", args.peer_python)
    if args.only:
        unknown = set(args.only.split(",")) - set(chosen)
        if unknown:
            raise SystemExit(
                f"--only={args.only}: there is no {', '.join(sorted(unknown))}; choose from {', '.join(chosen)}."
            )
        chosen = {name: chosen[name] for name in args.only.split(",")}
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{device.replace(' ', '-').lower()}-{datetime.date.today().isoformat()}"
    rows = []
    for name, command in chosen.items():
        rows += run(name, command, Path(f"{stem}.jsonl"), commit.stdout.strip())
    draw(rows, stem)


if __name__ == "__main__":
    main()

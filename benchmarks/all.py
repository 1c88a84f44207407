"""Runs the speed benchmarks that matter on this machine, one after another, and prints one JSON object.

Command: python -m benchmarks.all [--minutes=10] [--only=NAME,NAME] [--peer-python=PYTHON] [--out=benchmarks/results]
         [--quick]
On a GPU or TPU it measures one device in about --minutes: the rate of a matrix product, training and inference steps of
every published model in bfloat16, most important ones first, and the backends of attention. On a CPU it runs all
benchmarks, which takes hours, and draws their charts. --only runs those that are named instead. --quick runs one tiny
model, to try the command.

The last line is a JSON object with the device, versions, commit, date, `results` and `skipped`, which says what did not
run and why. It is also written to DEVICE-DATE.json, and every line to DEVICE-DATE.jsonl as soon as it is measured.
Each benchmark runs in a process of its own, so that none finds memory or a device in use. One that fails is reported,
and the others continue.

PYTHON is an interpreter with torch and transformers; without it the comparisons are left out. Not included are
`benchmarks.input` and `benchmarks.soak`, which need videos, `benchmarks.relevance` and `benchmarks.finetune`, which
train, `benchmarks.segments`, which needs a run, `benchmarks.restore`, which writes gigabytes, and
`benchmarks.campaign`, which takes hours.
"""

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.arguments import output, parse
from input_pipeline.files import write_text

ROOT = Path(__file__).resolve().parent.parent
ACCELERATOR = ("peak", "models", "attention")  # the benchmarks of a GPU or TPU in the given minutes
# The models in the order in which an accelerator measures them.
MODELS = (
    "vit_b16,mevit_b16,timesformer_b16,joint_b16,vivit_b16,havit_b16,swin_t,stat_t16,cvt_13,vtn_vit_b16,msca_b16,"
    "tokenshift_b16,havit_s16,vtn_resnet50,stat_t32,stat_t64"
)
QUICK = {
    "peak": ["benchmarks.throughput", "--only=", "--product=64", "--dtype=float32"],
    "models": [
        "benchmarks.models", "--only=vit_b16", "--modes=train,eval", "--depth=1", "--image-size=32", "--steps=1"
    ],
    "attention": ["benchmarks.attention", "--only=time", "--rounds=1"],
}  # fmt: skip
# What the lines of one machine have in common, and the object says once.
COMMON = ("device", "processor", "cores", "malloc", "date", "versions", "commit")
QUERY = """
import json, jax
from benchmarks.measure import processor, versions
device = jax.devices()[0]
print(json.dumps(dict(
    platform=jax.default_backend(), device=device.device_kind, devices=jax.device_count(),
    memory_bytes=(device.memory_stats() or {}).get("bytes_limit"), processor=processor(), versions=versions(),
)))
"""


def measurements(accelerator: bool, peer: str | None, minutes: float) -> dict[str, list[str]]:
    """Returns {name: arguments of `python -m`} of all benchmarks that this machine can run."""
    comparison = [f"--peer-python={peer}"] if peer else []
    cpu_flags = [] if accelerator else ["--dtype=float32", "--batches=1", "--product=2048", "--steps=3"]

    def batch(count: int) -> list[str]:
        return ["--dtype=bfloat16", f"--batch={count}"] if accelerator else []

    # Minutes of start-up and of the matrix product are left over.
    models = [f"--only={MODELS}", "--modes=train,eval", "--steps=10", f"--minutes={0.7 * minutes:g}"]
    commands = {
        "peak": ["benchmarks.throughput", "--only="],
        "throughput": ["benchmarks.throughput", *cpu_flags, *comparison],
        "timesformer_train": ["benchmarks.timesformer", "--mode=train", *comparison],
        "timesformer_eval": ["benchmarks.timesformer", "--mode=eval", *comparison],
        "models": ["benchmarks.models", *batch(8), *(models if accelerator else [])],
        "remat": ["benchmarks.remat", *batch(8)],
        "startup": ["benchmarks.startup"],
        "attention": [
            "benchmarks.attention", *batch(8), *([f"--minutes={0.2 * minutes:g}"] if accelerator else [])
        ],
        "folds": ["benchmarks.folds", *batch(32)],
        "inference": ["benchmarks.inference", *batch(16)],
        "growth": ["benchmarks.growth"],
        "collectives": ["benchmarks.collectives"],
        "context": ["benchmarks.context"],
        "pipeline": ["benchmarks.pipeline"],
    }  # fmt: skip
    if accelerator or not peer:  # on an accelerator `throughput` includes the comparison
        del commands["timesformer_train"], commands["timesformer_eval"]
    if not accelerator:  # `throughput` measures the peak, too
        del commands["peak"]
    return commands


def selection(commands: dict, only: str | None, accelerator: bool) -> dict[str, list[str]]:
    """Returns the commands to run: those that --only names, else those of an accelerator, else all."""
    if only is None:
        return {name: command for name, command in commands.items() if not accelerator or name in ACCELERATOR}
    unknown = set(only.split(",")) - set(commands)
    if unknown:
        raise SystemExit(f"--only={only}: there is no {', '.join(sorted(unknown))}. Choose from {', '.join(commands)}.")
    return {name: commands[name] for name in only.split(",")}


def run(name: str, command: list[str], out: Path, commit: str | None) -> tuple[list[dict], int]:
    """Runs one benchmark. Returns its lines and its exit status.

    Each line is appended to the file `out` as soon as it is printed.
    """
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
    return rows, process.returncode


def without_common(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in COMMON}


def measure(commands: dict, out: Path, commit: str | None) -> tuple[list[dict], list[dict]]:
    """Runs the benchmarks. Returns the lines that were measured, and what was skipped with the reason."""
    measured, skipped = [], []
    for name, command in commands.items():
        rows, status = run(name, command, out, commit)
        measured += [row for row in rows if "skipped" not in row]
        skipped += [without_common(row) for row in rows if "skipped" in row]
        if status:
            skipped.append({"benchmark": name, "skipped": f"It ended with status {status} after {len(rows)} lines."})
    return measured, skipped


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


def not_selected(commands: dict, chosen: dict, peer: str | None) -> list[dict]:
    """Returns what does not run because of the selection or a missing library, with the reason."""
    lines = [
        {"benchmark": name, "skipped": f"It is not part of this selection. --only={name} runs it."}
        for name in commands
        if name not in chosen
    ]
    if peer is None:
        reason = "--peer-python names no interpreter with torch and transformers."
        lines.append({"benchmark": "comparison with Hugging Face", "skipped": reason})
    return lines


def main():
    args = parse(
        __doc__, minutes=10.0, peer_python=None, only=None, out=str(ROOT / "benchmarks" / "results"), quick=False
    )
    with output(args.out, shared=False):
        measure_all(args)


def measure_all(args):
    started, out = time.perf_counter(), Path(args.out)
    # In another process: this one must not hold the device while the benchmarks run.
    answer = subprocess.run([sys.executable, "-c", QUERY], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    machine = json.loads(answer.stdout.splitlines()[-1])
    from vidformers.training.commit import git_commit

    accelerator, commit = machine["platform"] != "cpu", git_commit("vidformers", "configs", "benchmarks")
    commands = QUICK if args.quick else measurements(accelerator, args.peer_python, args.minutes)
    chosen = selection(commands, args.only, accelerator)
    print(f"Measures {', '.join(chosen)} on {machine['device']} ({machine['platform']}).", flush=True)
    stem = out / f"{machine['device'].replace(' ', '-').lower()}-{datetime.date.today().isoformat()}"
    measured, skipped = measure(chosen, Path(f"{stem}.jsonl"), commit)
    draw(measured, stem)
    about = machine | {"commit": commit, "date": datetime.date.today().isoformat()}
    result = {"benchmark": "all", "quick": args.quick, **about, "seconds": round(time.perf_counter() - started)}
    result["results"] = [without_common(row) for row in measured]
    result["skipped"] = skipped + not_selected(commands, chosen, args.peer_python)
    write_text(f"{stem}.json", json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

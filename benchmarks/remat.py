"""Memory, time and compile time of a training step for each rematerialisation policy.

Command: python -m benchmarks.remat [--model=mevit] [--batch=1] [--unroll=1] [--steps=5] [--dtype=float32]
Prints one JSON line for each policy (`model.remat`, and `full` with `optim.in_backward`). The steps of all policies
take turns, so all their states are in memory; with --steps=0 nothing is run. The compilation cache is off.
`--table=FILE` prints recorded lines as a table instead.
"""

import json
import statistics
from pathlib import Path

from benchmarks.arguments import parse
from benchmarks.measure import TrainingStep, keep_memory, report
from vidformers.models.encoder import REMAT


def show(path: str) -> None:
    print(
        "| model | clips | keeps | temporary memory | of all | seconds a step | compiles in |"
        "\n|---|---|---|---|---|---|---|"
    )
    rows = [row for row in map(json.loads, Path(path).read_text().splitlines()) if row["benchmark"] == "remat"]
    baseline = {(row["model"], row["batch"]): row["temporary_mib"] for row in rows if row["remat"] == "none"}
    for row in rows:
        share = row["temporary_mib"] / baseline[row["model"], row["batch"]]
        name = f"`{row['remat']}`{', `in_backward`' if row['in_backward'] else ''}"
        seconds = f"{row['seconds']:.1f}" if row["seconds"] else ""
        print(
            f"| `{row['model']}` | {row['batch']} | {name} | {row['temporary_mib']:,.0f} MiB | {share:.0%} | "
            f"{seconds} | {row['compile_seconds']:.0f} s |"
        )


def main():
    args = parse(__doc__, model="mevit", batch=1, unroll=1, steps=5, dtype="float32", table=None)
    if args.table:
        return show(args.table)
    keep_memory()
    options = dict(depth=11) if args.model == "mevit" else {}
    policies = [(remat, False) for remat in REMAT] + [("full", True)]
    steps = {
        policy: TrainingStep(
            args.model,
            args.batch,
            in_backward=policy[1],
            remat=policy[0],
            unroll=args.unroll,
            dtype=args.dtype,
            **options,
        )
        for policy in policies
    }
    times = {policy: [] for policy in policies}
    for _ in range(1 + args.steps if args.steps else 0):
        for policy, step in steps.items():
            times[policy].append(step())
    for (remat, in_backward), step in steps.items():
        seconds = statistics.median(times[remat, in_backward][1:]) if args.steps else None
        report(
            benchmark="remat",
            model=args.model,
            batch=args.batch,
            remat=remat,
            in_backward=in_backward,
            unroll=args.unroll,
            dtype=args.dtype,
            seconds=seconds,
            compile_seconds=step.compile_seconds,
            temporary_mib=step.temporary_bytes / 2**20,
        )


if __name__ == "__main__":
    main()

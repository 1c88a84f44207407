"""Measures every published model: parameters, multiply-adds, and a training step at its published size.

Command: python -m benchmarks.models [--batch=1] [--steps=3] [--dtype=float32] [--only=CONFIG,CONFIG]
Prints one JSON line a model. `--table=FILE` prints the lines of FILE as the README's table instead. The compilation
cache is off. Temporary memory is what the compiled step allocates in addition to its arguments. --steps=0 compiles
only.
"""

import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.arguments import parse
from benchmarks.measure import TrainingStep, keep_memory, report
from configs.loading import load
from vidformers import build
from vidformers.models.summary import summarise

CONFIGS = (
    "vit_b16",
    "timesformer_b16",
    "joint_b16",
    "mevit_b16",
    "havit_b16",
    "havit_s16",
    "msca_b16",
    "tokenshift_b16",
    "stat_t16",
    "stat_t32",
    "stat_t64",
    "vtn_vit_b16",
    "vtn_resnet50",
    "swin_t",
    "cvt_13",
    "vivit_b16",
)


def measure(name: str, batch: int, steps: int, dtype: str) -> None:
    """Prints the JSON line of one model."""
    model = load(f"configs/{name}.py").model.to_dict() | dict(dtype=dtype)
    cost = summarise(partial(build, **model))
    name = model.pop("name")
    step = TrainingStep(name, batch, **model)
    rate = None
    if steps:
        step()
        rate = batch / statistics.median(step() for _ in range(steps))
    report(
        benchmark="models",
        config=name,
        batch=batch,
        frames=model["frames"],
        size=model["image_size"],
        dtype=dtype,
        params=cost.params,
        macs_per_view=cost.macs_per_view,
        macs_per_view_linear=cost.macs_per_view_linear,
        clips_per_second=rate,
        temporary_mib=step.temporary_bytes / 2**20,
        compile_seconds=step.compile_seconds,
    )


def show(path: str) -> None:
    """Prints recorded lines as a Markdown table."""
    columns = (
        "config",
        "frames",
        "parameters",
        "G multiply-adds per view (linear)",
        "clips/s",
        "temporary memory",
        "compiles in",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if row["benchmark"] == "models":
            rate = f"{row['clips_per_second']:.3g}" if row["clips_per_second"] else ""
            print(
                f"| `{row['config']}` | {row['frames']} | {row['params']:,} | {row['macs_per_view'] / 1e9:.1f} "
                f"({row['macs_per_view_linear'] / 1e9:.1f}) | {rate} | "
                f"{row['temporary_mib']:,.0f} MiB | {row['compile_seconds']:.0f} s |"
            )


def main():
    args = parse(__doc__, batch=1, steps=3, dtype="float32", only=",".join(CONFIGS), table=None)
    if args.table:
        return show(args.table)
    keep_memory()
    configs = args.only.split(",")
    if len(configs) == 1:
        return measure(configs[0], args.batch, args.steps, args.dtype)
    for name in configs:  # one process a model, so that no memory of another model remains
        subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.models",
                f"--batch={args.batch}",
                f"--steps={args.steps}",
                f"--dtype={args.dtype}",
                f"--only={name}",
            ],
            check=True,
        )


if __name__ == "__main__":
    main()

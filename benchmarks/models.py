"""Measures every published model: parameters, multiply-adds, and a training or inference step at its published size.

Command: python -m benchmarks.models [--modes=train,eval] [--batch=1] [--steps=3] [--dtype=float32]
         [--only=CONFIG,CONFIG] [--minutes=0] [--depth=0] [--image-size=0]
Prints one JSON line for each model and mode. `--table=FILE` prints the lines of FILE as the README's table instead. The
compilation cache is off. Temporary memory is what the compiled step allocates in addition to its arguments. --steps=0
compiles only. Where a step does not fit in memory, the batch is halved. Each model runs in a process of its own. After
--minutes, if it is not 0, a running model is stopped and the others are skipped. A step that is skipped has a line with
the reason. --depth and --image-size replace those of the models, to try the command.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report, timed
from benchmarks.throughput import MODES
from configs.loading import load
from vidformers import build
from vidformers.models.summary import summarise
from vidformers.parallel.memory import program_bytes
from vidformers.parallel.peak import peak_flops

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


def measure(config: str, mode: str, args: argparse.Namespace) -> None:
    """Prints the JSON line of one model in one mode."""
    changes = {"depth": args.depth, "image_size": args.image_size}
    model = load(f"configs/{config}.py").model.to_dict() | dict(dtype=args.dtype)
    model |= {name: value for name, value in changes.items() if value}
    cost = summarise(partial(build, **model))
    name, (kind, passes) = model.pop("name"), MODES[mode]
    batch, measured = args.batch, None
    while batch and measured is None:
        step = timed(kind, name, batch, args.steps, **model)
        measured = step and step[1] | dict(program_mib=program_bytes(step[0].compiled) / 2**20)
        batch //= 2
    if measured is None:
        print(json.dumps(skipped(config, mode, "One clip does not fit in memory.")), flush=True)
        return
    peak, rate = peak_flops(jax.devices()[0]), measured["clips_per_second"]
    report(
        benchmark="models",
        config=config,
        mode=mode,
        frames=model["frames"],
        size=model["image_size"],
        dtype=args.dtype,
        params=cost.params,
        macs_per_view=cost.macs_per_view,
        macs_per_view_linear=cost.macs_per_view_linear,
        share_of_published_peak=2 * passes * cost.macs_per_view * rate / peak if peak and rate else None,
        **measured,
    )


def skipped(config: str, mode: str, reason: str) -> dict:
    """Returns the line of a step that was not measured."""
    return dict(benchmark="models", config=config, mode=mode, skipped=reason)


def measure_apart(config: str, args: argparse.Namespace, deadline: float | None) -> None:
    """Measures one model in a process of its own, and prints a line for each mode that has none at its end."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("batch", "steps", "dtype", "modes", "depth")]
    command = [sys.executable, "-m", "benchmarks.models", *flags, f"--image-size={args.image_size}", f"--only={config}"]
    missing, is_late = args.modes.split(","), deadline is not None and time.monotonic() >= deadline
    status = None
    if not is_late:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            timer = threading.Timer(0 if deadline is None else deadline - time.monotonic(), process.kill)
            if deadline is not None:
                timer.start()
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith("{"):
                    missing.remove(json.loads(line)["mode"])
            timer.cancel()
        status, is_late = process.returncode, deadline is not None and time.monotonic() >= deadline
    reason = "The time was over." if is_late else f"Its process ended with status {status}."
    for mode in missing:
        print(json.dumps(skipped(config, mode, reason)), flush=True)


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
        if row["benchmark"] == "models" and row.get("mode", "train") == "train" and "skipped" not in row:
            rate = f"{row['clips_per_second']:.3g}" if row["clips_per_second"] else ""
            print(
                f"| `{row['config']}` | {row['frames']} | {row['params']:,} | {row['macs_per_view'] / 1e9:.1f} "
                f"({row['macs_per_view_linear'] / 1e9:.1f}) | {rate} | "
                f"{row['temporary_mib']:,.0f} MiB | {row['compile_seconds']:.0f} s |"
            )


def main():
    args = parse(
        __doc__,
        modes="train",
        batch=1,
        steps=3,
        dtype="float32",
        only=",".join(CONFIGS),
        minutes=0.0,
        depth=0,
        image_size=0,
        table=None,
    )
    if args.table:
        return show(args.table)
    keep_memory()
    configs, modes = args.only.split(","), args.modes.split(",")
    if unknown := (set(configs) - set(CONFIGS)) | (set(modes) - set(MODES)):
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}. Use {', '.join([*MODES, *CONFIGS])}.")
    if len(configs) == 1 and not args.minutes:
        for mode in modes:
            measure(configs[0], mode, args)
        return None
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    for name in configs:  # one process a model, so that no memory of another model remains
        measure_apart(name, args, deadline)
    return None


if __name__ == "__main__":
    main()

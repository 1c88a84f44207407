"""Compiles the step of a config for TPUs or GPUs that this machine does not have, and prints what the compiler says.

Command: python -m benchmarks.ahead CONFIG --topology=v5e:1x1 [--clips=4] [--step=train|eval] [--config.field=value ...]
         [--until=end|buffers] [--text=FILE] [--out=FILE.jsonl]
CONFIG is a name in configs/, such as mevit_b16. --clips is the number of clips on each shard of the batch. Estimates
are the compiler's and not measured. They leave out exchanges between chips, and the operations under `unestimated`.
`make ahead` installs the compilers; run this program with .venv-ahead/bin/python. The last line is one JSON object.
"""

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax

from configs.loading import FlagError, load, override
from vidformers.errors import ConfigError
from vidformers.models.registry import build
from vidformers.models.summary import summarise
from vidformers.parallel import topology
from vidformers.parallel.account import Account, account
from vidformers.training.ahead import STEPS, Program, Request, compile_ahead

ROOT = Path(__file__).resolve().parent.parent
_PASSES = {"train": 3, "eval": 1}  # passes of the size of the forward pass
_LARGEST = 15


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Returns the flags, and the fields of the config that `--config.FIELD=VALUE` sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--step", choices=STEPS, default="train")
    parser.add_argument("--until", choices=("end", "buffers"), default="end")
    parser.add_argument("--text")
    parser.add_argument("--out")
    flags = [word for word in argv if not word.startswith("--config.")]
    fields = [word.removeprefix("--config.").partition("=") for word in argv if word.startswith("--config.")]
    return parser.parse_args(flags), [(name, value) for name, _, value in fields]


def products_seconds(config: dict, request: Request, mesh: dict[str, int]) -> float:
    """Returns the time of the model's own products of one step on one device, at the peak of the chip.

    These are the multiply-adds of `--mode=summary`, three times in training: without padding, masked products or
    rematerialisation.
    """
    macs = summarise(partial(build, **config["model"])).macs_per_view
    clips = request.clips / mesh["context"] * (config["train"]["accumulate"] if request.step == "train" else 1)
    return 2 * macs * _PASSES[request.step] * clips / topology.chip(request.topology).peak


def report(name: str, request: Request, program: Program) -> dict:
    """Returns the line of one program."""
    chip = topology.chip(request.topology)
    products = products_seconds(request.config, request, program.mesh)
    costs = account(program.text) if program.text else None
    seconds = None
    if costs is not None and chip.clock is not None and not request.until_buffers:
        print_table(costs, chip.clock)
        seconds = costs.cycles / chip.clock
    return {
        "config": name,
        "topology": request.topology,
        "mesh": program.mesh,
        "step": request.step,
        "clips": request.clips,
        "bytes": program.bytes,
        "largest_clips": None,
        "estimated_seconds": seconds,
        "products_seconds": products,
        "share": products / seconds if seconds else None,
        "exchanges": costs.exchanges if costs else None,
        "unestimated": unestimated(costs) if costs and seconds else None,
        "compile_seconds": round(program.seconds, 1),
    }


def unestimated(costs: Account) -> list[dict]:
    """Returns the operations without an estimate."""
    return [
        {"name": each.name, "kind": each.kind, "times": each.times, "bytes": each.bytes, "flops": each.flops,
         "source": each.source}
        for each in costs.unestimated
    ]  # fmt: skip


def print_table(costs: Account, clock: float) -> None:
    """Prints the estimated milliseconds by kind, by sublayer and by function, and the largest operations."""
    total = max(costs.cycles, 1)

    def row(cycles: int, text: str) -> str:
        return f"{cycles / clock * 1e3:9.2f} ms {cycles / total:6.1%}  {text}"

    def function(operation) -> str:
        return operation.source.rpartition(":")[0] + " " + operation.source.rpartition(" ")[2]

    groups = {"kind": lambda x: x.kind, "sublayer": lambda x: x.sublayer or "(none)", "function": function}
    for title, key in groups.items():
        print(f"\nBy {title}:")
        for name, cycles in costs.cycles_by(key).items():
            if cycles >= 0.002 * total:
                print(row(cycles, name))
    print(f"\nThe {_LARGEST} largest operations:")
    for each in costs.largest(_LARGEST):
        print(row(each.cycles or 0, f"{each.times} x {each.kind} {each.name} {each.shape[:60]} {each.source}"))


def versions() -> dict[str, str]:
    """Returns the versions of the compilers that are installed."""
    found = {}
    for name in ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-plugin"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Returns the commit, with '+' if tracked files have changed."""
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("+" if changed else "")


def measure(args: argparse.Namespace, fields: list[tuple[str, str]]) -> dict:
    """Compiles one program and returns its line."""
    config = load(f"configs/{args.config}.py")
    config.train.accumulate = 1
    for name, value in fields:
        override(config, name, value)
    request = Request(config.to_dict(), args.topology, args.clips, args.step, args.until == "buffers")
    program = compile_ahead(request)
    if args.text and program.text:
        Path(args.text).write_text(program.text, encoding="utf-8")
    line = report(args.config, request, program)
    return line | {
        "changes": dict(fields),
        "until": args.until,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    args, fields = read_arguments(sys.argv[1:])
    try:
        line = json.dumps(measure(args, fields))
    except (ConfigError, FlagError) as error:
        print(f"benchmarks.ahead: {error}", file=sys.stderr)
        return 2
    print(f"\n{line}")
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            print(line, file=file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

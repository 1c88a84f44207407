"""Compiles steps for TPUs or GPUs that this machine does not have, and prints what the compiler says of them.

Command: python -m benchmarks.ahead CONFIG,CONFIG --topology=v5e:1x1 [--clips=4] [--step=train|eval|predict]
         [--config.field=value ...] [--largest=true|false] [--until=end|buffers] [--text=FILE] [--out=FILE.jsonl]
`make ahead` installs the compilers; run this program with .venv-ahead/bin/python. CONFIG is the name of a file in
configs/, or `all`. --clips is the number of clips on each shard of the batch, without gradient accumulation unless
--config.train.accumulate is given. --largest=false leaves out the largest batch that fits, which takes four further
compilations, and --until=buffers leaves out the estimates. --text saves the program.

Prints estimated times by kind of operation, by sublayer and by function, and one JSON line for each config. Estimates
are the compiler's and not measured, and there are none for GPUs. They leave out exchanges between devices, and the
operations under `unestimated`, such as Pallas kernels. `unestimated_guess_seconds` is a guess for these: the larger of
the time of their bytes and twice the time of their products. --out appends the lines to a file. If the command is
repeated, the lines of the same commit are not compiled again.

`[CONFIG,CONFIG] --check=FILE.jsonl` compiles training steps again that are recorded in FILE, by default those of six
configs, and names those whose share or bytes are worse by more than 5%. The last line of each config that has a share
says with which topology, clips and changed fields. Other versions of JAX and of the compiler are named.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax

from benchmarks.measure import versions
from benchmarks.models import CONFIGS
from configs.loading import FlagError, load, override
from input_pipeline.errors import DataError
from input_pipeline.json_files import JsonError, parse_json
from input_pipeline.outputs import output_file
from input_pipeline.paths import local_path
from input_pipeline.text import print_line
from vidformers.errors import ConfigError, require
from vidformers.models.registry import build
from vidformers.models.summary import summarise
from vidformers.parallel import topology
from vidformers.parallel.account import Account, Operation, account
from vidformers.training.ahead import STEPS, Request, compile_ahead, largest_clips
from vidformers.training.commit import git_commit

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("mevit_b16", "vit_b16", "timesformer_b16", "havit_b16", "swin_t", "stat_t16")
_KEY = ("config", "topology", "step", "clips", "changes", "until", "commit")  # lines that agree in these are equal
_PASSES = {"train": 3, "eval": 1, "predict": 1}  # the products of a step, in forward passes
_LARGEST_OPERATIONS = 15
_TOLERANCE = 0.05
_DIRTY = "-dirty"  # ends a commit with further changes


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Returns the flags. `changes` is {field: value} of the flags `--config.FIELD=VALUE`."""
    parser = argparse.ArgumentParser(
        "benchmarks.ahead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="?", metavar="CONFIG,CONFIG")
    parser.add_argument("--topology", help=", ".join(topology.TOPOLOGIES))
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--step", choices=STEPS, default="train")
    parser.add_argument("--until", choices=("end", "buffers"), default="end")
    parser.add_argument("--largest", choices=("true", "false"), default="true")
    for name in ("text", "out", "check"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args([word for word in argv if not word.startswith("--config.")])
    words = [word.removeprefix("--config.").partition("=") for word in argv if word.startswith("--config.")]
    args.changes = {name: value for name, _, value in words}
    if args.check is None and not (args.configs and args.topology):
        parser.error("CONFIG and --topology are needed, or --check=FILE.jsonl.")
    if args.check is not None and any(word.startswith("--") and not word.startswith("--check") for word in argv):
        parser.error("--check takes no other flag. The lines of the file say what is compiled.")
    return args


def read_config(name: str, changes: dict[str, str]) -> dict:
    """Returns a config of configs/ with changed fields, without gradient accumulation unless a change sets it."""
    require(name in CONFIGS, f"The config {name} is unknown. Use all, or some of {', '.join(CONFIGS)}.")
    config = load(str(ROOT / "configs" / f"{name}.py"))
    config.train.accumulate = 1
    for field, value in changes.items():
        override(config, field, value)
    return config.to_dict()


def products_seconds(request: Request, mesh: dict[str, int]) -> float:
    """Returns the time of the model's own products of one step on one device, at the peak of the chip.

    These are the multiply-adds of `--mode=summary`, three times in training: without padding, masked products or
    rematerialisation.
    """
    macs = summarise(partial(build, **request.config["model"])).macs_per_view
    micro_batches = request.config["train"]["accumulate"] if request.step == "train" else 1
    clips = request.clips * micro_batches / mesh["context"]
    return 2 * macs * _PASSES[request.step] * clips / topology.chip(request.topology).peak


def guess_seconds(operations: list[Operation], kernel_flops: int, chip: topology.Chip) -> float:
    """Returns a guess of the time of operations without an estimate.

    This is the time of their bytes. For all Pallas kernels together, it is twice the time of their products if that is
    larger.
    """
    kernels = sum(each.bytes for each in operations if each.kind == "kernel") / chip.bandwidth
    others = sum(each.bytes for each in operations if each.kind != "kernel") / chip.bandwidth
    return others + max(kernels, 2 * kernel_flops / chip.peak)


def measure(name: str, request: Request, largest: bool, text_file: str | None = None) -> dict:
    """Compiles one program, prints its tables and returns its line.

    Raises:
        ConfigError: the program cannot be compiled.
    """
    chip, before = topology.chip(request.topology), commit()
    program = compile_ahead(request)
    if text_file and program.text:
        Path(text_file).write_text(program.text, encoding="utf-8")
    costs = account(program.text) if program.text else None
    estimated = costs is not None and chip.clock is not None and not request.until_buffers
    products = products_seconds(request, program.mesh)
    seconds = costs.cycles / chip.clock if estimated else None
    if estimated:
        print_tables(costs, chip)
    line = {
        "benchmark": "ahead",
        "config": name,
        "topology": request.topology,
        "mesh": program.mesh,
        "step": request.step,
        "clips": request.clips,
        "bytes": program.bytes,
        "state_bytes": program.state_bytes,
        "largest_clips": largest_clips(request, {request.clips: program.bytes}) if largest else None,
        "estimated_seconds": seconds,
        "products_seconds": products,
        "share": products / seconds if seconds else None,
        "exchanges": costs.exchanges if costs else None,
        "unestimated": [unestimated_line(operation) for operation in costs.unestimated] if estimated else None,
        "unestimated_guess_seconds": (
            guess_seconds(costs.unestimated, program.kernel_flops, chip) if estimated else None
        ),
        "compile_seconds": round(program.seconds, 1),
    }
    after = commit()
    return line | {
        "versions": versions(),
        "commit": before if before == after or before is None else f"{before.removesuffix(_DIRTY)}{_DIRTY}",
        "date": datetime.date.today().isoformat(),
    }


def unestimated_line(operation: Operation) -> dict:
    """Returns the fields of an operation without an estimate."""
    names = ("name", "kind", "times", "bytes", "sublayer", "source")
    return {name: getattr(operation, name) for name in names}


def print_tables(costs: Account, chip: topology.Chip) -> None:
    """Prints the estimates by kind, by sublayer and by function, and the largest operations."""
    total = max(costs.cycles, 1)

    def row(cycles: int, text: str) -> str:
        return f"{cycles / chip.clock * 1e3:9.2f} ms {cycles / total:6.1%}  {text}"

    def function(operation: Operation) -> str:
        file, _, rest = operation.source.partition(":")
        return f"{file} {rest.partition(' ')[2]}"

    groups = {"kind": lambda x: x.kind, "sublayer": lambda x: x.sublayer or "(none)", "function": function}
    for title, key in groups.items():
        print(f"\nBy {title}:")
        for name, cycles in costs.cycles_by(key).items():
            if cycles >= 0.002 * total:
                print(row(cycles, name))
    print(f"\nThe {_LARGEST_OPERATIONS} largest operations:")
    for each in costs.largest(_LARGEST_OPERATIONS):
        print(row(each.cycles or 0, f"{each.times} x {each.kind} {each.name} {each.shape[:60]} {each.source}"))
    for each in costs.unestimated[:_LARGEST_OPERATIONS]:
        print(f"No estimate: {each.times} x {each.kind} {each.name}, {each.bytes / 1e6:.1f} MB, {each.source}")
    moved = sum(each.bytes for each in costs.operations if each.kind == "asynchronous copy")
    print(f"Asynchronous copies, not in the estimate: {moved / 1e9:.2f} GB, {moved / chip.bandwidth * 1e3:.1f} ms")


def summary(line: dict) -> str:
    """Returns a line in words."""
    chip = topology.chip(line["topology"])
    parts = [f"{line['bytes'] / 2**30:.2f} of {chip.memory / 2**30:.2f} GiB"]
    if line["largest_clips"] is not None:
        parts.append(f"at most {line['largest_clips']} clips fit")
    if line["share"] is not None:
        parts.append(
            f"estimate {line['estimated_seconds'] * 1e3:.1f} ms, products at the peak "
            f"{line['products_seconds'] * 1e3:.1f} ms, share {line['share']:.1%}"
        )
    parts += [f"{kind} {x['count']} x, {x['bytes'] / 1e6:.0f} MB" for kind, x in (line["exchanges"] or {}).items()]
    head = f"{line['config']}, {line['step']}, {line['clips']} clips a shard, {line['topology']}"
    return f"{head}: {'; '.join(parts)}; compiled in {line['compile_seconds']:.0f} s."


def commit() -> str | None:
    """Returns the commit, with '-dirty' after it if files that programs depend on have changed; None outside of Git."""
    return git_commit("vidformers", "configs", "benchmarks/ahead.py")


def key(line: dict) -> tuple:
    """Returns the fields by which two lines are of the same program."""
    return tuple(str(line.get(name)) for name in _KEY)


def read_lines(path: str) -> list[dict]:
    """Returns the lines of this benchmark in a file."""
    lines = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = parse_json(text) if text.strip() else {}
        except JsonError as error:
            raise ConfigError(f"Line {number} of {path} {error}. Remove the line.") from None
        if line.get("benchmark") == "ahead":
            lines.append(line)
    return lines


def measure_all(args: argparse.Namespace) -> bool:
    """Prints and records the line of every config. Returns whether all could be compiled."""
    names = list(CONFIGS) if args.configs == "all" else args.configs.split(",")
    require(len(names) == 1 or args.text is None, "--text saves the program of one config. Name one, not several.")
    done = {key(line) for line in read_lines(args.out)} if args.out and Path(args.out).exists() else set()
    succeeded = True
    for name in names:
        shown = {"changes": args.changes, "until": args.until}
        wanted = shown | {"config": name, "commit": commit()} | {x: getattr(args, x) for x in _KEY[1:4]}
        if key(wanted) in done and wanted["commit"] and not wanted["commit"].endswith(_DIRTY):
            print(f"{name}: {args.out} has its line already.")
            continue
        try:
            config = read_config(name, args.changes)
            request = Request(config, args.topology, args.clips, args.step, args.until == "buffers")
            line = measure(name, request, args.largest == "true", args.text) | shown
        except (ConfigError, DataError, FlagError) as error:
            print_line(f"benchmarks.ahead: {name}: {error}", sys.stderr)
            succeeded = False
            continue
        print(f"\n{summary(line)}\n{json.dumps(line)}", flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as file:
                print(json.dumps(line), file=file)
    return succeeded


def worse(old: dict, new: dict) -> Iterator[str]:
    """Yields a sentence for the share and for the bytes of a program if they are worse by more than 5%."""
    where = f"{new['config']}, {new['clips']} clips a shard, {new['topology']}"
    if new["share"] is None or new["share"] < (1 - _TOLERANCE) * old["share"]:
        share = "none" if new["share"] is None else f"{new['share']:.1%}"
        yield f"{where}: the share of the products is {share} instead of {old['share']:.1%}."
    guess, old_guess = (line["unestimated_guess_seconds"] or 0.0 for line in (new, old))
    if guess - old_guess > _TOLERANCE * old["estimated_seconds"]:  # work without an estimate must not look free
        yield f"{where}: operations without an estimate take {guess:.2g} s by the guess instead of {old_guess:.2g} s."
    if new["bytes"] > (1 + _TOLERANCE) * old["bytes"]:
        yield f"{where}: {new['bytes'] / 2**30:.2f} GiB instead of {old['bytes'] / 2**30:.2f}."


def recorded_lines(path: str, names: list[str]) -> dict[str, dict]:
    """Returns for each config the last line in a file that is of a training step and has a share.

    Raises:
        ConfigError: there is no such file, or no such line of a config.
    """
    require(Path(path).is_file(), f"--check={path} does not exist.")
    lines = [line for line in read_lines(path) if line["step"] == "train" and line["share"] is not None]
    found = {line["config"]: line for line in lines}
    missing = ",".join(name for name in names if name not in found)
    require(
        not missing,
        f"--check={path} has no training step with a share of {missing}. Record it with: python -m benchmarks.ahead "
        f"{missing} --topology=v5e:1x1 --largest=false --out={path}",
    )
    return {name: found[name] for name in names}


def other_versions(old: dict) -> str | None:
    """Returns a sentence on the versions that differ between a recorded line and this environment, or None."""
    now = versions()
    names = [name for name in ("jax", "jaxlib", "libtpu") if old["versions"].get(name) != now.get(name)]
    if not names:
        return None
    pairs = [f"{name} {old['versions'].get(name, 'none')} (now {now.get(name, 'none')})" for name in names]
    return f"{old['config']} was recorded with {', '.join(pairs)}. A difference may come from the compiler."


def check(path: str, names: list[str]) -> bool:
    """Compiles the recorded training steps of these configs again. Returns whether none is worse."""
    recorded = recorded_lines(path, names)
    notes = [note for note in map(other_versions, recorded.values()) if note]
    print("\n".join(notes), flush=True)
    results = []
    for name, old in recorded.items():
        try:
            request = Request(read_config(name, old["changes"]), old["topology"], old["clips"])
            new = measure(name, request, largest=False)
        except (ConfigError, DataError, FlagError) as error:
            results.append(f"{name}: {error}")
            continue
        print(f"\n{summary(new)}\nRecorded at {old['commit']}: {summary(old)}", flush=True)
        results += worse(old, new)
    is_worse = bool(results)
    if not is_worse:
        results = [f"Not worse by more than {_TOLERANCE:.0%}: {', '.join(recorded)}."]
    print("\n" + "\n".join(notes + results))
    return not is_worse


def main(argv: list[str]) -> int:
    """Runs the command. Returns 0, 1 if --check found something worse, or 2 after a mistake."""
    jax.config.update("jax_platforms", "cpu")
    args = read_arguments(argv)
    try:
        if args.check is not None:
            return 0 if check(args.check, args.configs.split(",") if args.configs else list(CHECKED)) else 1
        with ExitStack() as stack:
            for flag in ("out", "text"):
                if path := getattr(args, flag):
                    setattr(args, flag, local_path(f"--{flag}", path))
                    stack.enter_context(output_file(getattr(args, flag), flag))
            return 0 if measure_all(args) else 2
    except (ConfigError, DataError, FlagError) as error:
        print_line(f"benchmarks.ahead: {error}", sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Counts the collectives in one training step of each model on meshes of 8 devices.

Command: python -m benchmarks.collectives [--only=CONFIG,CONFIG] [--mesh=fsdp8,context4] [--clips=2]
Prints one JSON line for each model and mesh that it supports: the number of calls of each collective in a step, the
bytes of their results on one device, and the bytes of the parameters. It needs no accelerator. Programs are compiled
for 8 simulated devices and not run: at published sizes, with --clips clips a device, in float32 because CPUs compute
bfloat16 in float32. `--table=FILE` prints recorded lines as a table instead.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

import jax

from benchmarks.arguments import parse
from benchmarks.measure import LoweredStep, report, simulate
from configs.loading import load
from vidformers.models.registry import MODELS
from vidformers.parallel.mesh import make_mesh, num_batch_shards

CONFIGS = ("vit_b16", "timesformer_b16", "joint_b16", "mevit_b16", "havit_b16", "msca_b16", "stat_t16", "vtn_vit_b16")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
MESHES = {"data8": dict(data=8), "fsdp8": dict(fsdp=8), "context4": dict(data=2, context=4)}
DEVICES = 8
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$", re.M)
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_ISSUED = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")


def collectives(compiled) -> dict[str, dict[str, int]]:
    """Counts the collectives of a compiled program, from XLA's text.

    The body of a loop counts once for each iteration, or once if the text does not give the trip count.

    Returns:
        {kind: {"count": calls in one run of the program, "bytes": sum over their results on one device}}.
    """
    text = compiled.as_text()
    starts = [(match.group(1), match.start()) for match in _COMPUTATION.finditer(text)]
    bodies = {
        name: text[start:end].splitlines()[1:]
        for (name, start), (_, end) in zip(starts, starts[1:] + [("", len(text))], strict=True)
    }
    entry = re.search(r"^ENTRY %?([\w.-]+) ", text, re.M).group(1)
    counts, sizes = Counter(), Counter()

    def visit(name, times):
        for line in bodies.get(name, ()):
            issued = _ISSUED.search(line)
            if issued:
                shapes, kind = issued.groups()
                counts[kind] += times
                sizes[kind] += times * sum(_size(*shape) for shape in _SHAPE.findall(shapes))
                continue
            trips = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                visit(called, times * (int(trips.group(1)) if trips else 1))

    visit(entry, 1)
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in KINDS if counts[kind]}


def _size(kind: str, dimensions: str) -> int:
    size = _BYTES.get(kind, 0)
    for dimension in filter(None, dimensions.split(",")):
        size *= int(dimension)
    return size


def measure(name: str, mesh_name: str, clips: int) -> None:
    """Compiles one training step and prints its line."""
    config, mesh = load(f"configs/{name}.py").to_dict(), make_mesh(**MESHES[mesh_name])
    step = LoweredStep(config["model"] | dict(dtype="float32"), clips * num_batch_shards(mesh), mesh)
    compiled = step.lowered.compile(
        compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    )
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.abstract))
    local = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(step.abstract)
    )
    report(
        benchmark="collectives",
        config=name,
        mesh=mesh_name,
        clips_a_device=clips / mesh.shape["context"],
        parameter_bytes=sum(leaf.size * 4 for leaf in jax.tree.leaves(step.abstract.parameters)),
        state_over_share=local * mesh.shape["fsdp"] / total,
        collectives=collectives(compiled),
        temporary_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
    )


def show(path: str) -> None:
    """Prints recorded lines as a Markdown table, in megabytes a device and step."""
    print(f"| config | mesh | parameters | {' | '.join(KINDS)} |\n{'|---' * (3 + len(KINDS))}|")
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if row["benchmark"] == "collectives":
            cells = [
                f"{row['collectives'][kind]['bytes'] / 1e6:,.0f} ({row['collectives'][kind]['count']})"
                if kind in row["collectives"]
                else ""
                for kind in KINDS
            ]
            print(f"| `{row['config']}` | {row['mesh']} | {row['parameter_bytes'] / 1e6:,.0f} | {' | '.join(cells)} |")


def main():
    args = parse(__doc__, only=",".join(CONFIGS), mesh="fsdp8,context4", clips=2, table=None)
    if args.table:
        return show(args.table)
    simulate(DEVICES)
    for name in args.only.split(","):
        frames_on_one_device = MODELS[load(f"configs/{name}.py").model.name].traits.frames_on_one_device
        for mesh in args.mesh.split(","):
            if not (frames_on_one_device and "context" in MESHES[mesh]):
                measure(name, mesh, args.clips)


if __name__ == "__main__":
    main()

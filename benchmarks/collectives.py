"""Counts the collectives in one training step of each model on meshes of 8 devices.

Command: python -m benchmarks.collectives [--only=CONFIG,CONFIG] [--mesh=fsdp8,context4] [--clips=2]
Prints one JSON line for each model and mesh that it supports: the number of calls of each collective in a step, the
bytes of their results on one device, and the bytes of the parameters. It needs no accelerator. Programs are compiled
for 8 simulated devices and not run: at published sizes, with --clips clips a device, in float32 because CPUs compute
bfloat16 in float32. `--table=FILE` prints recorded lines as a table instead.
"""

import json
import math
from pathlib import Path

import jax

from benchmarks.arguments import parse
from benchmarks.measure import LoweredStep, report, simulate
from configs.loading import load
from vidformers.models.registry import MODELS
from vidformers.parallel.account import COLLECTIVES, collectives
from vidformers.parallel.mesh import make_mesh, num_batch_shards

CONFIGS = ("vit_b16", "timesformer_b16", "joint_b16", "mevit_b16", "havit_b16", "msca_b16", "stat_t16", "vtn_vit_b16")
MESHES = {"data8": dict(data=8), "fsdp8": dict(fsdp=8), "context4": dict(data=2, context=4)}
DEVICES = 8


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
        collectives=collectives(compiled.as_text()),
        temporary_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
    )


def show(path: str) -> None:
    """Prints recorded lines as a Markdown table, in megabytes a device and step."""
    print(f"| config | mesh | parameters | {' | '.join(COLLECTIVES)} |\n{'|---' * (3 + len(COLLECTIVES))}|")
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if row["benchmark"] == "collectives":
            cells = [
                f"{row['collectives'][kind]['bytes'] / 1e6:,.0f} ({row['collectives'][kind]['count']})"
                if kind in row["collectives"]
                else ""
                for kind in COLLECTIVES
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

"""Memory of a training step on long clips, with and without sharding the frames over devices.

Command: python -m benchmarks.context [--frames=96] [--size=448] [--models=timesformer,joint] [--remat=none,full]
Prints one JSON line for each model and rematerialisation policy: the bytes that a device must hold (state, batch and
temporaries, as the compiler reports them) to train a base model on one clip, on one device and on 8 devices that shard
its frames (`mesh.context=8`). Programs are compiled for simulated devices and not run, in float32 because CPUs compute
bfloat16 in float32; in bfloat16 activations take half. `--table=FILE` prints recorded lines as a table instead.
"""

import json
from pathlib import Path

import jax

from benchmarks.arguments import parse
from benchmarks.measure import LoweredStep, report, simulate
from vidformers.parallel import memory
from vidformers.parallel.mesh import make_mesh

DEVICES = 8


def step_bytes(name: str, devices: int, frames: int, size: int, remat: str) -> int:
    """Returns the bytes that each of `devices` devices must hold for a step on one clip that they share."""
    mesh = make_mesh(data=1, context=devices, devices=jax.devices()[:devices])
    lowered = LoweredStep(dict(name=name, frames=frames, image_size=size, remat=remat), 1, mesh).lowered
    return memory.program_bytes(lowered.compile())


def show(path: str) -> None:
    print("| model | `model.remat` | one device | each of 8 |\n|---|---|---|---|")
    for row in map(json.loads, Path(path).read_text().splitlines()):
        if row["benchmark"] == "context":
            print(
                f"| `{row['model']}`, {row['frames']} frames of {row['size']} | `{row['remat']}` | "
                f"{row['one_device_bytes'] / 2**30:,.0f} GiB | {row['eight_devices_bytes'] / 2**30:,.0f} GiB |"
            )


def main():
    args = parse(__doc__, frames=96, size=448, models="timesformer,joint", remat="none,full", table=None)
    if args.table:
        return show(args.table)
    simulate(DEVICES)
    for name in args.models.split(","):
        for remat in args.remat.split(","):
            one, eight = (step_bytes(name, devices, args.frames, args.size, remat) for devices in (1, DEVICES))
            report(
                benchmark="context",
                model=name,
                frames=args.frames,
                size=args.size,
                remat=remat,
                one_device_bytes=one,
                eight_devices_bytes=eight,
            )


if __name__ == "__main__":
    main()

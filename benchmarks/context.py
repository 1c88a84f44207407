"""Whether long clips fit when their frames are spread over devices: memory of a training step, compiled and not run.

Command: python -m benchmarks.context [--frames=96] [--size=448] [--models=timesformer,joint] [--remat=none,full]
One JSON line a model and policy: bytes that a device must hold (state, batch, temporaries, by the compiler's account)
to train base models on one clip, on one device and on 8 that spread its frames (`mesh.context=8`). Compiled for
simulated devices in float32, since CPUs would compute bfloat16 in it; in bfloat16 activations take half.
`--table=FILE` prints recorded lines as a table instead.
"""

import json
from pathlib import Path

import jax

from benchmarks.arguments import parse
from benchmarks.measure import LoweredStep, report, simulate
from vidformers.parallel import memory
from vidformers.parallel.mesh import make_mesh

DEVICES = 8


def needed(name: str, devices: int, frames: int, size: int, remat: str) -> int:
    """Bytes a device must hold for a step on one clip that so many devices share."""
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
            one, eight = (needed(name, devices, args.frames, args.size, remat) for devices in (1, DEVICES))
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

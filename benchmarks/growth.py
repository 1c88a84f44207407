"""How time and memory of each attention scheme grow: with frames, with the grid, with block size and window.

Command: python -m benchmarks.growth [--out=STEM] [--seconds=3] [--largest=1]
One attention sublayer of width 128 and 2 heads, forward and backward, on one clip. One JSON line a scheme and axis:
for each size, seconds, temporary bytes as the compiler accounts for them, and multiply-adds counted from the traced
program; and the exponents of the three, fitted over the upper half of the sizes. Multiply-adds are the theory: time
that grows otherwise is bound by something else. With --out, charts STEM-growth-AXIS.png. `--table=FILE` prints recorded
lines as a table instead. `--largest` below 1 leaves out sizes above that share of the largest.
"""

import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.arguments import parse
from benchmarks.measure import keep_memory, report
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.motion import Motion
from vidformers.attention.shifted import Shifted
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.attention.time import Time
from vidformers.layers.tokens import Tokens
from vidformers.models.summary import count_macs

WIDTH, HEADS = 128, 2
FRAMES, GRID = 8, 14  # where they do not grow
SIZES = {"frames": (4, 8, 16, 32, 64), "grid": (7, 14, 21, 28), "block": (1, 2, 7, 14), "window": (8, 16, 32, 64, 128)}


def scheme(make):
    return partial(SelfAttention, make, WIDTH, HEADS)


SCHEMES = {
    "frame": scheme(Frame()),
    "time": scheme(Time()),
    "joint": scheme(Joint()),
    "joint, linear (ReLU)": partial(SelfAttention, Joint(), WIDTH, HEADS, kernel="relu"),
    "motion, M=2": scheme(Motion(2)),
    "shifted heads (MSCA)": scheme(Shifted("heads", "KV", 1, 1)),
    "shrinking (STAT)": partial(ShrinkingAttention, WIDTH, HEADS),
    "windows (Swin)": partial(ShiftedWindowAttention, WIDTH, HEADS, window=(8, 7, 7), shifted=True),
    "convolutional (CvT)": partial(ConvolutionalAttention, Frame(), WIDTH, HEADS),
}
PER_FRAME = ("shrinking (STAT)", "shifted heads (MSCA)")  # with a class token a frame


def cases():
    """(scheme, axis, sizes, size -> (what makes the sublayer, its tokens))."""

    def tokens(classes, frames=FRAMES, grid=GRID):
        rng = np.random.default_rng(0)
        shape = (1, frames, grid, grid, WIDTH)
        count = {"none": 0, "clip": 1, "frames": frames}[classes]
        return Tokens(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (1, count, WIDTH))))

    def series(frames):
        values = np.random.default_rng(0).normal(size=(1, 1 + frames, WIDTH))
        return FrameSequence(jnp.asarray(values, jnp.float32), jnp.ones((1, 1 + frames), bool))

    for name, make in SCHEMES.items():
        classes = "frames" if name in PER_FRAME else "none" if "Swin" in name or "CvT" in name else "clip"
        for axis in ("frames", "grid"):
            yield (
                name,
                axis,
                SIZES[axis],
                lambda size, axis=axis, make=make, classes=classes: (make, tokens(classes, **{axis: size})),
            )
    yield "motion, block M", "block", SIZES["block"], lambda size: (scheme(Motion(size)), tokens("clip"))
    window = partial(LongformerAttention, WIDTH, HEADS)
    yield "window (VTN)", "frames", (64, 128, 256, 512), lambda size: (partial(window, 32), series(size))
    yield "window (VTN)", "window", SIZES["window"], lambda size: (partial(window, size), series(512))


def measure(make, tokens, seconds: float) -> dict:
    """Of forward and backward: median seconds over a while, temporary bytes; of forward, multiply-adds."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(0)))))()

    def forward(parameters, tokens):
        return nnx.merge(graph, parameters).branch(tokens)

    def loss(parameters, tokens):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(forward(parameters, tokens)))

    compiled = jax.jit(jax.grad(loss)).lower(parameters, tokens).compile()
    jax.block_until_ready(compiled(parameters, tokens))
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end and len(times) < 100:
        started = time.perf_counter()
        jax.block_until_ready(compiled(parameters, tokens))
        times.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(times),
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
        "macs": count_macs(forward, parameters, tokens).total,
    }


def exponent(sizes, values) -> float:
    """The slope of log value over log size in the upper half of the sizes, where overheads count least."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def draw(rows: list[dict], stem: Path) -> None:
    """A chart an axis: seconds and bytes over size, each scheme a line with its exponents."""
    from matplotlib.figure import Figure

    names = {"frames": "frames", "grid": "patches a side", "block": "block size M", "window": "window w"}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis]
        sizes = sorted({size for row in own for size in row["sizes"]})
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, field, unit in zip(panels, ("seconds", "bytes"), ("seconds", "temporary bytes"), strict=True):
            for i, row in enumerate(own):
                panel.plot(
                    row["sizes"],
                    [point[field] for point in row["points"]],
                    "osv^Dx*P<>+"[i % 11] + "-",
                    label=f"{row['scheme']}: {row['exponents'][field]:.2f}",
                    linewidth=1.3,
                    markersize=5,
                )
            decades = np.log10([point[field] for row in own for point in row["points"]])  # whole ones, to be read off
            panel.set(
                xscale="log",
                yscale="log",
                xlabel=names[axis],
                ylabel=unit,
                ylim=(10 ** np.floor(decades.min()), 10 ** np.ceil(decades.max())),
            )
            panel.set_xticks(sizes, map(str, sizes), minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(title="exponent", fontsize=8)
        figure.suptitle(f"One attention sublayer, forward and backward, on {rows[0]['device']}")
        figure.savefig(f"{stem}-growth-{axis}.png", dpi=110)


def show(path: str) -> None:
    print("| scheme | grows with | multiply-adds | time | memory |\n|---|---|---|---|---|")
    for line in Path(path).read_text().splitlines():
        row = json.loads(line)
        if row["benchmark"] == "growth":
            print(
                f"| {row['scheme']} | {row['axis']} | "
                + " | ".join(f"{row['exponents'][field]:.2f}" for field in ("macs", "seconds", "bytes"))
                + " |"
            )


def main():
    args = parse(__doc__, out=None, seconds=3.0, largest=1.0, table=None)
    if args.table:
        return show(args.table)
    keep_memory()
    rows = []
    for name, axis, sizes, make in cases():
        sizes = [size for size in sizes if size <= args.largest * max(sizes)]
        points = [measure(*make(size), args.seconds) for size in sizes]
        exponents = {
            field: exponent(sizes, [point[field] for point in points]) for field in ("seconds", "bytes", "macs")
        }
        row = dict(benchmark="growth", scheme=name, axis=axis, sizes=sizes, points=points, exponents=exponents)
        rows.append(row | {"device": jax.devices()[0].device_kind})
        report(**row)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        draw(rows, Path(args.out))


if __name__ == "__main__":
    main()

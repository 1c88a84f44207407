"""Measures how time and memory of each attention grow with frames, grid, block size and window.

Command: python -m benchmarks.growth [--out=STEM] [--seconds=3] [--largest=1]

Measures one attention sublayer of width 128 with 2 heads, forward and backward, on one clip: every registered scheme,
and the attentions that are not schemes. Prints one JSON line for each attention and axis. It holds for each size the
seconds, the temporary bytes reported by the compiler, and the multiply-adds counted in the traced program, and the
exponents of these three, fitted over the upper half of the sizes. Multiply-adds are the theory: time with another
exponent is bound by something else.

`--out` draws charts STEM-growth-AXIS.png. `--table=FILE` prints recorded lines as a table instead. `--largest` below 1
skips sizes above this fraction of the largest.
"""

import json
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.arguments import output, parse
from benchmarks.measure import keep_memory, report
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.motion import Motion
from vidformers.attention.registry import load_schemes
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.layers.tokens import Tokens
from vidformers.models.summary import count_macs

WIDTH, HEADS = 128, 2
FRAMES, GRID = 8, 14  # the sizes of the axes that do not grow
SIZES = {"frames": (4, 8, 16, 32, 64), "grid": (7, 14, 21, 28), "block": (1, 2, 7, 14), "window": (8, 16, 32, 64, 128)}


def self_attention(scheme, **options):
    return partial(SelfAttention, scheme, WIDTH, HEADS, **options)


def attentions() -> dict:
    """Returns name -> (sublayer without rngs, class tokens: 'none', or one per 'clip' or per 'frame')."""
    registered = {}
    for name, entry in load_schemes().items():
        scheme = entry.make()
        options = dict(class_keys=False, class_queries=False) if scheme.causal else {}
        kind = next(kind for kind in ("clip", "frame", "none") if kind in entry.class_tokens)
        registered[name] = self_attention(scheme, **options), kind
    return registered | {
        "joint, linear (ReLU)": (self_attention(Joint(), kernel="relu"), "clip"),
        "shrinking (STAT)": (partial(ShrinkingAttention, WIDTH, HEADS), "frame"),
        "windows (Swin)": (partial(ShiftedWindowAttention, WIDTH, HEADS, window=(8, 7, 7), shifted=True), "none"),
        "convolutional (CvT)": (partial(ConvolutionalAttention, Frame(), WIDTH, HEADS), "none"),
    }


def draw_tokens(class_tokens: str, frames: int = FRAMES, grid: int = GRID) -> Tokens:
    count = {"none": 0, "clip": 1, "frame": frames}[class_tokens]
    rng = np.random.default_rng(0)
    shapes = (1, frames, grid * grid, WIDTH), (1, count, WIDTH)
    patches, class_tokens = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return Tokens(patches, class_tokens, (frames, grid, grid))


def draw_series(frames: int) -> FrameSequence:
    values = np.random.default_rng(0).normal(size=(1, 1 + frames, WIDTH))
    return FrameSequence(jnp.asarray(values, jnp.float32), jnp.ones((1, 1 + frames), bool))


def cases():
    """Yields (name, axis, sizes, function of a size that returns the sublayer without rngs and its tokens)."""

    def with_size(sublayer, class_tokens, axis):
        return lambda size: (sublayer, draw_tokens(class_tokens, **{axis: size}))

    for name, (sublayer, class_tokens) in attentions().items():
        for axis in ("frames", "grid"):
            yield name, axis, SIZES[axis], with_size(sublayer, class_tokens, axis)
    yield "motion, block M", "block", SIZES["block"], lambda m: (self_attention(Motion(m)), draw_tokens("clip"))
    window = partial(LongformerAttention, WIDTH, HEADS)
    yield "window (VTN)", "frames", (64, 128, 256, 512), lambda size: (partial(window, 32), draw_series(size))
    yield "window (VTN)", "window", SIZES["window"], lambda size: (partial(window, size), draw_series(512))


def measure(make, tokens, seconds: float) -> dict:
    """Returns median seconds and temporary bytes of forward and backward, and multiply-adds of forward."""
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
    """Returns the slope of log value over log size in the upper half of the sizes, where overheads matter least."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def draw(rows: list[dict], stem: Path) -> None:
    """Draws a chart for each axis: seconds and bytes over size, with a line and an exponent for each attention."""
    from matplotlib.figure import Figure

    names = {"frames": "frames", "grid": "patches per side", "block": "block size M", "window": "window w"}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        axis_rows = [row for row in rows if row["axis"] == axis]
        sizes = sorted({size for row in axis_rows for size in row["sizes"]})
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        panels = figure.subplots(1, 2)
        for panel, field, unit in zip(panels, ("seconds", "bytes"), ("seconds", "temporary bytes"), strict=True):
            for i, row in enumerate(axis_rows):
                panel.plot(
                    row["sizes"],
                    [point[field] for point in row["points"]],
                    "osv^Dx*P<>+"[i % 11] + "-",
                    label=f"{row['scheme']}: {row['exponents'][field]:.2f}",
                    linewidth=1.3,
                    markersize=5,
                )
            # Limits at powers of ten make a logarithmic axis readable.
            decades = np.log10([point[field] for row in axis_rows for point in row["points"]])
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
    with output(Path(args.out).parent) if args.out else nullcontext():
        rows = measure_all(args.seconds, args.largest)
        if args.out:
            draw(rows, Path(args.out))


def measure_all(seconds: float, largest: float) -> list[dict]:
    """Prints and returns the JSON line of each case, see `cases`, in sizes of at most `largest` times its largest."""
    keep_memory()
    rows = []
    for name, axis, sizes, make in cases():
        sizes = [size for size in sizes if size <= largest * max(sizes)]
        points = [measure(*make(size), seconds) for size in sizes]
        exponents = {
            field: exponent(sizes, [point[field] for point in points]) for field in ("seconds", "bytes", "macs")
        }
        row = dict(benchmark="growth", scheme=name, axis=axis, sizes=sizes, points=points, exponents=exponents)
        rows.append(row | {"device": jax.devices()[0].device_kind})
        report(**row)
    return rows


if __name__ == "__main__":
    main()

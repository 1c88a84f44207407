"""Training and inference of the base models on this machine: clips per second, share of the matrix peak, memory.

Command: python -m benchmarks.throughput [--only=CONFIG,CONFIG] [--batches=8,16,32,64,128] [--dtype=bfloat16]
         [--product=8192] [--steps=10] [--backend=auto] [--peer-python=PYTHON]
PYTHON is an interpreter with torch and transformers. With it, Hugging Face's TimeSformer, ViViT and VideoMAE run first,
eager and under torch.compile, before JAX holds memory. Next is a square matrix product, whose rate is the peak that the
shares refer to, then our models. Prints one JSON line for each model and mode, at the largest batch worth its memory:
the next larger one gains less than 3%, or does not fit. With `--only=` it prints the peak alone. `--table=FILE` prints
recorded lines as a table instead.
"""

import json
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.arguments import parse
from benchmarks.measure import ForwardStep, TrainingStep, keep_memory, report, timed
from configs.loading import load
from vidformers import build
from vidformers.models.summary import summarise

CONFIGS = ("vit_b16", "timesformer_b16", "mevit_b16", "havit_b16", "msca_b16", "stat_t16", "vtn_vit_b16")
# The class of the step, and its work relative to a forward pass.
MODES = {"train": (TrainingStep, 3), "eval": (ForwardStep, 1)}
PEER = Path(__file__).with_name("huggingface.py")
PEERS = ("timesformer", "vivit", "videomae")


def peak(side: int, dtype: str, rounds: int = 20) -> float:
    """Returns the floating-point operations per second of a product of square matrices."""
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.dtype(dtype)) for i in range(2))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(product(a, b))
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times)


def best(batches, run) -> dict | None:
    """Returns `run(batch)` of the last batch size that gains 3% over the one before, or None if none fits."""
    result = None
    for batch in batches:
        metrics = run(batch)
        if metrics is None or result and metrics["clips_per_second"] < 1.03 * result["clips_per_second"]:
            break
        result = metrics
    return result


def ours(name: str, mode: str, steps: int, dtype: str, backend: str, batch: int) -> dict | None:
    """Measures one of our models. Returns None if it does not fit in memory."""
    model = load(f"configs/{name}.py").model.to_dict() | dict(dtype=dtype)
    macs = summarise(partial(build, **model)).macs_per_view
    name, (kind, work) = model.pop("name"), MODES[mode]
    if name != "stat":  # which has only one attention backend
        model["backend"] = backend
    measured = timed(kind, name, batch, steps, **model)
    return measured and measured[1] | dict(flops_per_second=2 * work * macs * measured[1]["clips_per_second"])


def peer(python: str, name: str, mode: str, steps: int, dtype: str, compiled: bool, batch: int) -> dict | None:
    """Measures one of Hugging Face's models. Returns None if its process ends, most likely for lack of memory."""
    command = [python, str(PEER), f"--model={name}", f"--dtype={dtype}", f"--batch={batch}", f"--mode={mode}"]
    with subprocess.Popen(
        command + ["--compile"] * compiled, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            about, times = json.loads(process.stdout.readline()), []
            for _ in range(2 + steps):
                print("step", file=process.stdin, flush=True)
                times.append(json.loads(process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError):
            return None
    rate = batch / statistics.median(answer["seconds"] for answer in times[2:])
    return dict(batch=batch, clips_per_second=rate, peak_bytes=times[-1].get("peak_bytes"), about=about)


def show(path: str) -> None:
    print("| model | mode | batch | clips/s | share of the peak | temporary memory |\n|---|---|---|---|---|---|")
    for row in map(json.loads, Path(path).read_text().splitlines()):
        if row["benchmark"] == "throughput" and row["batch"]:
            share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
            memory = f"{row['temporary_mib']:,.0f} MiB" if "temporary_mib" in row else ""
            print(
                f"| {row['model']} | {row['mode']} | {row['batch']} | {row['clips_per_second']:.3g} | {share} | "
                f"{memory} |"
            )


def main():
    args = parse(
        __doc__,
        only=",".join(CONFIGS),
        batches="8,16,32,64,128",
        dtype="bfloat16",
        product=8192,
        steps=10,
        backend="auto",
        peer_python=None,
        table=None,
    )
    if args.table:
        return show(args.table)
    keep_memory()
    batches = [int(batch) for batch in args.batches.split(",")]
    peers = [
        (
            name,
            mode,
            compiled,
            best(batches, partial(peer, args.peer_python, name, mode, args.steps, args.dtype, compiled)),
        )
        for name in (PEERS if args.peer_python else ())
        for mode in MODES
        for compiled in (False, True)
    ]
    for name, mode, compiled, metrics in peers:
        report(
            benchmark="throughput",
            model=f"Hugging Face {name}{', compiled' if compiled else ''}",
            mode=mode,
            dtype=args.dtype,
            **(metrics or {"batch": None}),
        )
    rate = peak(args.product, args.dtype)
    report(benchmark="peak", side=args.product, dtype=args.dtype, flops_per_second=rate)
    for name in filter(None, args.only.split(",")):
        for mode in MODES:
            metrics = best(batches, partial(ours, name, mode, args.steps, args.dtype, args.backend))
            if metrics is None:
                raise SystemExit(f"{name}: not even a batch of {batches[0]} fits in memory. Use smaller --batches.")
            report(
                benchmark="throughput",
                model=name,
                mode=mode,
                dtype=args.dtype,
                backend=args.backend,
                share_of_peak=metrics["flops_per_second"] / rate,
                **metrics,
            )


if __name__ == "__main__":
    main()

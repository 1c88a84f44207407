"""Training and inference of the base models on this machine: clips a second, share of the matrix peak, memory.

Command: python -m benchmarks.throughput [--only=CONFIG,CONFIG] [--batches=8,16,32,64,128] [--dtype=bfloat16]
         [--product=8192] [--steps=10] [--backend=auto] [--peer-python=PYTHON]
With PYTHON, an interpreter with torch and transformers, first Hugging Face's TimeSformer, ViViT and VideoMAE, eager and
under torch.compile, while JAX holds no memory yet. Then a square matrix product, whose rate is the peak that the shares
are of, and our models. One JSON line a model and mode, at the batch from which a larger one gains less than 3%, or does
not fit. `--table=FILE` prints recorded lines as a table instead.
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
from benchmarks.measure import ForwardStep, TrainingStep, keep_memory, report
from configs import sheet as configs
from vidformers import build
from vidformers.models.summary import summarise

SHEETS = ("vit_b16", "timesformer_b16", "mevit_b16", "havit_b16", "msca_b16", "stat_t16", "vtn_vit_b16")
MODES = {"train": (TrainingStep, 3), "eval": (ForwardStep, 1)}  # what runs it, and its work over a forward pass
PEER = Path(__file__).with_name("huggingface.py")
PEERS = ("timesformer", "vivit", "videomae")


def peak(side: int, dtype: str, rounds: int = 20) -> float:
    """Floating-point operations a second of a product of square matrices."""
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
    """The figures, by `run(batch)`, of the batch from which a larger one does not pay; None where none fits."""
    found = None
    for batch in batches:
        figures = run(batch)
        if figures is None or found and figures["clips_per_second"] < 1.03 * found["clips_per_second"]:
            break
        found = figures
    return found


def ours(sheet: str, mode: str, steps: int, dtype: str, backend: str, batch: int) -> dict | None:
    """The figures of one of our models; None where it does not fit."""
    model = configs.load(f"configs/{sheet}.py").model.to_dict() | dict(dtype=dtype)
    macs = summarise(partial(build, **model)).macs_per_view
    name, (kind, work) = model.pop("name"), MODES[mode]
    if name != "stat":  # whose attention has no other
        model["backend"] = backend
    try:
        step = kind(name, batch, **model)
        step()
        rate = batch / statistics.median(step() for _ in range(steps))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return dict(
        batch=batch,
        clips_per_second=rate,
        flops_per_second=2 * work * macs * rate,
        temporary_mib=step.temporary_bytes / 2**20,
        compile_seconds=step.compile_seconds,
    )


def peer(python: str, name: str, mode: str, steps: int, dtype: str, compiled: bool, batch: int) -> dict | None:
    """The figures of one of Hugging Face's models; None where it ends, by a lack of memory most likely."""
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
    rate = batch / statistics.median(each["seconds"] for each in times[2:])
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
        only=",".join(SHEETS),
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
    theirs = [
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
    for name, mode, compiled, found in theirs:
        report(
            benchmark="throughput",
            model=f"Hugging Face {name}{', compiled' if compiled else ''}",
            mode=mode,
            dtype=args.dtype,
            **(found or {"batch": None}),
        )
    rate = peak(args.product, args.dtype)
    report(benchmark="peak", side=args.product, dtype=args.dtype, flops_per_second=rate)
    for sheet in args.only.split(","):
        for mode in MODES:
            found = best(batches, partial(ours, sheet, mode, args.steps, args.dtype, args.backend))
            if found is None:
                raise SystemExit(f"{sheet}: not even --batches={batches[0]} fits.")
            report(
                benchmark="throughput",
                model=sheet,
                mode=mode,
                dtype=args.dtype,
                backend=args.backend,
                share_of_peak=found["flops_per_second"] / rate,
                **found,
            )


if __name__ == "__main__":
    main()

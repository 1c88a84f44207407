"""A step of TimeSformer-B/16, of training or evaluation, beside Hugging Face's in PyTorch, taking turns.

Command: python -m benchmarks.timesformer --peer-python=PYTHON [--mode=train|eval] [--batch=1] [--rounds=7]
         [--dtype=float32] [--unroll=12] [--compile]
PYTHON is an interpreter with torch and transformers; nothing else here needs them. Both take the same clip size, loss
and optimiser, in float32 on the CPU with 2 threads, and both keep the memory they free. One JSON line: medians, and
the ratio of clips a second.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import jax

from benchmarks.measure import ForwardStep, TrainingStep, keep_memory, report

WARM_UP = 4  # rounds, until both have all the memory they will use
PEER = Path(__file__).with_name("huggingface.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--mode", default="train", choices=["train", "eval"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--unroll", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="the peer under torch.compile")
    args = parser.parse_args()
    keep_memory()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    command = [
        args.peer_python,
        str(PEER),
        f"--device={device}",
        f"--dtype={args.dtype}",
        f"--batch={args.batch}",
        f"--mode={args.mode}",
    ]
    peer = subprocess.Popen(
        command + ["--compile"] * args.compile, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with peer:
        about = json.loads(peer.stdout.readline())  # it is ready, and idle until asked
        kind = TrainingStep if args.mode == "train" else ForwardStep
        ours = kind("timesformer", args.batch, dtype=args.dtype, unroll=args.unroll)
        mine, theirs = [], []
        for _ in range(WARM_UP + args.rounds):
            mine.append(ours())
            print("step", file=peer.stdin, flush=True)
            theirs.append(json.loads(peer.stdout.readline())["seconds"])
        mine, theirs = mine[WARM_UP:], theirs[WARM_UP:]
        print("quit", file=peer.stdin, flush=True)
    ours_s, peer_s = statistics.median(mine), statistics.median(theirs)
    report(
        benchmark="timesformer",
        mode=args.mode,
        batch=args.batch,
        dtype=args.dtype,
        unroll=args.unroll,
        rounds=args.rounds,
        ours_seconds=ours_s,
        peer_seconds=peer_s,
        ratio=peer_s / ours_s,
        ours_all=mine,
        peer_all=theirs,
        peer=about,
        compile_seconds=ours.compile_seconds,
        temporary_mib=ours.temporary_bytes / 2**20,
    )


if __name__ == "__main__":
    main()

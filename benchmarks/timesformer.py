"""A training or evaluation step of TimeSformer-B/16 and of Hugging Face's TimeSformer in PyTorch, in turns.

Command: python -m benchmarks.timesformer --peer-python=PYTHON [--mode=train|eval] [--batch=1] [--rounds=7]
         [--dtype=float32] [--unroll=12] [--compile]
PYTHON is an interpreter with torch and transformers, which nothing else here needs. Both programs take the same clip
size, loss and optimizer, in float32 on the CPU with 2 threads, and both keep the memory that they free. Prints one JSON
line: medians, and the ratio of clips per second.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import jax

from benchmarks.measure import ForwardStep, TrainingStep, keep_memory, report

WARM_UP = 4  # rounds until both programs have allocated all their memory
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
        about = json.loads(peer.stdout.readline())  # the peer is ready, and idle until it gets a command
        kind = TrainingStep if args.mode == "train" else ForwardStep
        ours = kind("timesformer", args.batch, dtype=args.dtype, unroll=args.unroll)
        our_times, peer_times = [], []
        for _ in range(WARM_UP + args.rounds):
            our_times.append(ours())
            print("step", file=peer.stdin, flush=True)
            peer_times.append(json.loads(peer.stdout.readline())["seconds"])
        our_times, peer_times = our_times[WARM_UP:], peer_times[WARM_UP:]
        print("quit", file=peer.stdin, flush=True)
    ours_seconds, peer_seconds = statistics.median(our_times), statistics.median(peer_times)
    report(
        benchmark="timesformer",
        mode=args.mode,
        batch=args.batch,
        dtype=args.dtype,
        unroll=args.unroll,
        rounds=args.rounds,
        ours_seconds=ours_seconds,
        peer_seconds=peer_seconds,
        ratio=peer_seconds / ours_seconds,
        ours_all=our_times,
        peer_all=peer_times,
        peer=about,
        compile_seconds=ours.compile_seconds,
        temporary_mib=ours.temporary_bytes / 2**20,
    )


if __name__ == "__main__":
    main()

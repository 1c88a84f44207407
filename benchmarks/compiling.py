"""Compile time and temporary memory of the training step of MEViT-B/16, by what the backward pass keeps.

Command: python -m benchmarks.compiling [--model=mevit] [--batch=1] [--unroll=1]
One JSON line a policy. The compilation cache is off.
"""

import argparse

from benchmarks.measure import TrainingStep, report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mevit")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--unroll", type=int, default=1)
    args = parser.parse_args()
    options = dict(depth=11) if args.model == "mevit" else {}
    for remat in ("none", "dots", "full"):
        step = TrainingStep(args.model, args.batch, remat=remat, unroll=args.unroll, **options)
        report(benchmark="compiling", model=args.model, batch=args.batch, remat=remat, unroll=args.unroll,
               trace_seconds=step.trace_seconds, compile_seconds=step.compile_seconds,
               temporary_mib=step.temporary_bytes / 2**20)


if __name__ == "__main__":
    main()

"""Compares the steps that fine-tuning and training from scratch take to an accuracy: the demo's MEViT on motion clips.

Command: python -m benchmarks.finetune [--data=data/motion_clips] [--accuracy=0.95] [--seeds=3] [--steps=800]
[--pretrain=800] [--every=20]

The model is trained on three of the five pairs of motions and exported. It is then trained on the other two pairs, from
the export and from scratch, by the same commands with the same settings. Every `--every` steps it is evaluated on one
view of the held-out clips of these two pairs. A run ends when it reaches the accuracy.

Prints one JSON line: the steps by seed, their ratios, and the median ratio. A run from scratch that does not reach the
accuracy counts with all of its steps, so the ratio is then an upper bound. It is an error if fine-tuning does not reach
the accuracy.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import report
from input_pipeline.motion_clips import CLASSES, ensure
from vidformers.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
PRETRAIN_CLASSES, FINETUNE_CLASSES = CLASSES[:6], CLASSES[6:]  # slides and sizes; turns and appearances


def subset(data: Path, folder: Path, names) -> list[str]:
    """Writes manifests with the clips of the classes `names`, and returns the flags of a run on them."""
    folder.mkdir()
    for split in ("train", "val"):
        with (
            open(data / f"{split}.csv", newline="") as source,
            open(folder / f"{split}.csv", "w", newline="") as target,
        ):
            rows = [(data / path, CLASSES[int(label)]) for path, label in list(csv.reader(source))[1:]]
            csv.writer(target).writerows([("path", "label"), *(row for row in rows if row[1] in names)])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    swaps = tuple(
        (name, name.replace("left", "right").replace("turn clock", "turn anticlock"))
        for name in names
        if name in ("slide left", "turn clockwise")
    )
    return [
        f"--config.data.{field}={value}"
        for field, value in dict(
            source="csv", root=folder, classes="classes.txt", num_classes=len(names), flip_swaps=swaps
        ).items()
    ]


def start(workdir: Path, fields) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "main.py", "--config=configs/demo.py", f"--workdir={workdir}", *fields],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen) -> None:
    assert process.wait() == 0, f"{process.args} ended with status {process.returncode}"


def steps_to(accuracy: float, workdir: Path, fields) -> int | None:
    """Trains until the accuracy is reached. Returns the step at which it was, or None if it was not."""

    def step_reached():
        return next((row["step"] for row in read_metrics(workdir) if row.get("val/top1@1x1", 0) >= accuracy), None)

    process = start(workdir, fields)
    while process.poll() is None and step_reached() is None:
        time.sleep(0.5)
    if step_reached() is None:
        finish(process)
    else:
        process.terminate()  # the run saves a checkpoint and exits
        process.wait()
    return step_reached()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "motion_clips")
    parser.add_argument("--accuracy", type=float, default=0.95)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pretrain", type=int, default=800)
    parser.add_argument("--every", type=int, default=20)
    args = parser.parse_args()
    data = ensure(args.data)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pretrain_flags = subset(data, folder / "three", PRETRAIN_CLASSES)
        finetune_flags = subset(data, folder / "two", FINETUNE_CLASSES)
        pretrain_flags += [f"--config.train.total_steps={args.pretrain}", "--config.train.eval_every_steps=none"]
        finish(start(folder / "before", pretrain_flags))
        finish(start(folder / "before", [*pretrain_flags, "--mode=export", f"--out={folder / 'model'}"]))
        steps = {"finetuned": [], "scratch": []}
        for seed in range(args.seeds):
            for kind, weights in (("finetuned", [f"--config.init.weights={folder / 'model'}"]), ("scratch", [])):
                steps[kind].append(
                    steps_to(
                        args.accuracy,
                        folder / f"{kind}{seed}",
                        [
                            *finetune_flags,
                            *weights,
                            f"--config.seed={seed}",
                            f"--config.train.total_steps={args.steps}",
                            f"--config.train.eval_every_steps={args.every}",
                            "--config.eval.clips=1",
                        ],
                    )
                )
        last = [row for row in read_metrics(folder / "before") if any(name.startswith("val/top1") for name in row)][-1]
    assert all(steps["finetuned"]), f"fine-tuning did not reach {args.accuracy} in {args.steps} steps: {steps}"
    ratios = [
        finetuned / (scratch or args.steps)
        for finetuned, scratch in zip(steps["finetuned"], steps["scratch"], strict=True)
    ]
    report(
        benchmark="finetune",
        accuracy=args.accuracy,
        every=args.every,
        steps=args.steps,
        pretrain=args.pretrain,
        pretrained_top1={name: value for name, value in last.items() if name.startswith("val/top1")},
        steps_to_accuracy=steps,
        ratios=ratios,
        median_ratio=statistics.median(ratios),
    )


if __name__ == "__main__":
    main()

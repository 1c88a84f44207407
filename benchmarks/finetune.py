"""Steps that fine-tuning takes to an accuracy, beside training from scratch: the demo's MEViT on motion clips.

Command: python -m benchmarks.finetune [--data=data/motion_clips] [--accuracy=0.95] [--seeds=3] [--steps=800]
[--pretrain=800] [--every=20]
The model learns three of the five pairs of motions and is exported. Then it learns the other two, from the export and
from scratch, by the same commands and settings, and is evaluated after every so many steps on one view of the held-out
clips of those two; a run ends when it reaches the accuracy. One JSON line: the steps to it by seed, their ratios and
the median of these. A run from scratch that does not reach it counts with all of its steps, so that the ratio is an
upper bound; fine-tuning that does not is an error.
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
FIRST, SECOND = CLASSES[:6], CLASSES[6:]  # slides and sizes; turns and appearing


def subset(data: Path, folder: Path, names) -> list[str]:
    """Lists of the clips of these classes alone; returns the fields of a run on them."""
    folder.mkdir()
    for split in ("train", "val"):
        with open(data / f"{split}.csv", newline="") as before, open(folder / f"{split}.csv", "w", newline="") as after:
            rows = [(data / path, CLASSES[int(label)]) for path, label in list(csv.reader(before))[1:]]
            csv.writer(after).writerows([("path", "label"), *(row for row in rows if row[1] in names)])
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
    """Trains until the accuracy is reached, and returns at which step it was; None where it was not."""

    def reached():
        return next((row["step"] for row in read_metrics(workdir) if row.get("val/top1@1x1", 0) >= accuracy), None)

    process = start(workdir, fields)
    while process.poll() is None and reached() is None:
        time.sleep(0.5)
    if reached() is None:
        finish(process)
    else:
        process.terminate()  # it saves and ends
        process.wait()
    return reached()


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
        first, second = subset(data, folder / "three", FIRST), subset(data, folder / "two", SECOND)
        once = [f"--config.train.total_steps={args.pretrain}", "--config.train.eval_every_steps=none"]
        finish(start(folder / "before", [*first, *once]))
        finish(start(folder / "before", [*first, *once, "--mode=export", f"--out={folder / 'model'}"]))
        steps = {"finetuned": [], "scratch": []}
        for seed in range(args.seeds):
            for kind, weights in (("finetuned", [f"--config.init.weights={folder / 'model'}"]), ("scratch", [])):
                steps[kind].append(
                    steps_to(
                        args.accuracy,
                        folder / f"{kind}{seed}",
                        [
                            *second,
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
        ours / (scratch or args.steps) for ours, scratch in zip(steps["finetuned"], steps["scratch"], strict=True)
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

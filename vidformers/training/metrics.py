"""Where figures go: `metrics.jsonl`, TensorBoard events derived from it, and the two pictures."""

import json
import time
from pathlib import Path

import numpy as np

from input_pipeline.files import write_text


class MetricWriter:
    """Appends figures to `metrics.jsonl` and to TensorBoard events, from one process.

    Opened at a restored step, it first drops what lies beyond that step: lines are rewritten atomically (a line cut
    short by a kill goes too) and the events, which say nothing the lines do not, are written anew from them.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        self.path = Path(workdir) / "metrics.jsonl"
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        for events in Path(workdir).glob("events.out.tfevents.*"):
            events.unlink()
        self.written = {_names(row) for row in kept}
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(str(workdir))
        for row in kept:
            self._events(row)
        self.board.flush()

    def write(self, step: int, figures: dict) -> None:
        """Appends a line, unless the step has one of these names: a finished run evaluated again says nothing new."""
        row = {"step": step, "time": round(time.time(), 3), **{name: float(x) for name, x in figures.items()}}
        if _names(row) in self.written:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self._events(row)
        self.board.flush()

    def _events(self, row: dict) -> None:
        for name, value in row.items():
            if name not in ("step", "time"):
                self.board.add_scalar(name, value, row["step"], walltime=row["time"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


def _names(row: dict) -> tuple:
    return (row["step"], *row)


def read_metrics(workdir: Path) -> list[dict]:
    """The whole lines of `metrics.jsonl`, in order; [] where there is none."""
    rows = []
    path = Path(workdir) / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def draw_curves(workdir: Path) -> None:
    """`curves.png`: loss, and top-1 in training and validation, along the steps of `metrics.jsonl`."""
    plt = _pyplot()
    rows = read_metrics(workdir)
    names = sorted({name for row in rows for name in row})
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axes, part in ((losses, "loss"), (accuracies, "top1")):
        for name in (name for name in names if name.split("@")[0].endswith("/" + part)):
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 30 else None, markersize=3)
        axes.set(xlabel="step", ylabel=part)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    accuracies.set_ylim(0, 1.02)
    figure.savefig(Path(workdir) / "curves.png", dpi=120)
    plt.close(figure)


def draw_confusion(workdir: Path, confusion: np.ndarray, names, title: str) -> None:
    """`confusion.png` from counts (true class, predicted class); rows are shown as shares of the true class."""
    plt = _pyplot()
    count = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(3.2 + 0.42 * count, 14)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, shrink=0.8, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if count <= 30:
        axes.set_xticks(range(count), names, rotation=45, ha="right")
        axes.set_yticks(range(count), names)
        for (i, j), share in np.ndenumerate(shares):
            if confusion[i, j]:
                axes.text(
                    j,
                    i,
                    int(confusion[i, j]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 0.5 else "black",
                )
    figure.savefig(Path(workdir) / "confusion.png", dpi=120)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

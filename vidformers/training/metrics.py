"""The metrics of a run: `metrics.jsonl`, its copies for TensorBoard and others, and two pictures."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from input_pipeline.figures import drawn_texts, num_letters, shortened
from input_pipeline.files import atomic_file, unused_path, write_text
from input_pipeline.json_files import JsonError, check_kind, open_regular, parse_json
from vidformers.errors import ConfigError
from vidformers.progress import log
from vidformers.training.wandb_run import WandbRun

_FILE = "metrics.jsonl"

_MAX_NAMES = 30  # class names in a picture


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events. Only one process of a run has a writer.

    When a run continues, `metrics.jsonl` is first rewritten atomically without the rows after the restored step and
    without a last row that is incomplete after a kill. The events are then written anew from its rows. If other rows
    are damaged, the file is kept as `metrics.jsonl.damaged`.

    Args:
        workdir: the folder of the run.
        step: the restored step, 0 for a new run.
        wandb_run: gets the metrics too, or None.
    """

    def __init__(self, workdir: Path, step: int, wandb_run: WandbRun | None = None):
        path = Path(workdir) / _FILE
        rows, damaged = _read_rows(path)
        if damaged:
            copy = unused_path(path.with_name(f"{_FILE}.damaged"))
            shutil.copyfile(path, copy)
            log(f"{path} has {damaged} damaged rows, which are left out. {copy.name} keeps the file as it was.")
        rows = [row for row in rows if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        for events in Path(workdir).glob("events.out.tfevents.*"):
            events.unlink()
        self._written = {_step_and_names(row) for row in rows}
        self._file = open(path, "ab", buffering=0)
        self._copies = [_EventFile(Path(workdir)), *([wandb_run] if wandb_run else [])]
        for copy in self._copies:
            copy.write(rows)

    def write(self, step: int, metrics: dict) -> None:
        """Appends a row. Does nothing if the step has a row with these metrics, as when a finished run is run again.

        Raises:
            OSError: the row cannot be written. The file then holds no part of it.
        """
        row = {"step": step, "time": round(time.time(), 3), **{name: float(x) for name, x in metrics.items()}}
        if _step_and_names(row) in self._written:
            return
        self._append(json.dumps(row).encode() + b"\n")
        for copy in self._copies:
            copy.write([row])

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            error.filename = self._file.name
            raise

    def close(self) -> None:
        self._file.close()
        for copy in self._copies:
            copy.close()


class _EventFile:
    """A new file of TensorBoard events in `workdir`.

    It is written in the calling thread, so that a full disk raises there. The thread of tensorboardX's SummaryWriter
    would end with a traceback, and no longer empty the bounded queue of its events.
    """

    def __init__(self, workdir: Path):
        from tensorboardX.event_file_writer import EventsWriter

        self._path = workdir / "events"
        self._writer = EventsWriter(os.fspath(self._path))

    def write(self, rows: list[dict]) -> None:
        """Writes the metrics of rows of `metrics.jsonl`.

        Raises:
            OSError: the events cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        try:
            for row in rows:
                for name in (name for name in row if name not in ("step", "time")):
                    event = Event(wall_time=row.get("time", time.time()), step=row["step"])
                    event.summary.CopyFrom(scalar(name, float(row[name])))
                    self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            error.filename = f"{self._path}.out.tfevents"
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `write` has flushed, or has failed for the same reason
            self._writer.close()


def _step_and_names(row: dict) -> tuple:
    return (row["step"], *row)


def read_metrics(workdir: Path) -> list[dict]:
    """Returns the rows of `metrics.jsonl` in order, without damaged ones; [] if there is no file.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _read_rows(Path(workdir) / _FILE)[0]


def _read_rows(path: Path) -> tuple[list[dict], int]:
    """Returns the rows of a file, and the number of damaged rows.

    A last row without a closing brace does not count as damaged: a kill has cut it short.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Fix this and run the command again.") from None
    if b"}" not in lines[-1]:
        lines.pop()
    rows = [_parse_row(line) for line in lines]
    return [row for row in rows if row is not None], rows.count(None)


def _parse_row(line: bytes) -> dict | None:
    """Returns a row, or None unless the line is an object of numbers with a step."""
    try:
        row = parse_json(line, {"step": int})
        check_kind(row, dict.fromkeys(row, float))
        list(map(float, row.values()))  # raises for an integer beyond all floats
    except (JsonError, OverflowError):
        return None
    return row if 0 <= row["step"] < 2**63 else None


def draw_curves(workdir: Path) -> None:
    """Draws `curves.png`: loss, and top-1 or with several labels mAP, over the steps of `metrics.jsonl`."""
    rows = read_metrics(workdir)
    names = sorted({name for row in rows for name in row})
    with drawn_texts(names) as labels:
        figure = _curves(rows, dict(zip(names, map(shortened, labels), strict=True)))
        _save(figure, Path(workdir) / "curves.png")


def _curves(rows: list[dict], labels: dict[str, str]):
    """Returns the figure of `draw_curves`. `labels` are the texts of the metrics by their name.

    A part of the data and a protocol, such as `val` and `1x1`, have the same colour in both axes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axes, share_axes = figure.subplots(1, 2, sharex=True)
    share = "mAP" if any(name.startswith("val/mAP@") for name in labels) else "top1"
    colours: dict[tuple[str, str], str] = {}
    for axes, metric, title in ((loss_axes, "loss", "loss"), (share_axes, share, share.replace("top1", "top-1"))):
        for name in (name for name in labels if name.split("@")[0].endswith("/" + metric)):
            colour = colours.setdefault((name.split("/")[0], name.partition("@")[2]), f"C{len(colours) % 10}")
            points = [(row["step"], row[name]) for row in rows if name in row]
            size = 6 if len(points) == 1 else 3 if len(points) < 30 else 0
            axes.plot(*zip(*points, strict=True), label=labels[name], color=colour, marker="o", markersize=size)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    loss_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    share_axes.yaxis.set_major_formatter(PercentFormatter(1))
    share_axes.set_ylim(0, 1.05)  # space above a line at 100%, which the legend then avoids
    return figure


def draw_confusion(workdir: Path, confusion: np.ndarray, names, title: str) -> None:
    """Draws `confusion.png`, a confusion matrix whose rows are normalised by the videos of the true class.

    Args:
        workdir: the folder of the run.
        confusion: counts of videos (true class, predicted class).
        names: the class names. They are shown if there are at most 30 classes.
        title: the title of the picture.
    """
    shown = names if len(confusion) <= _MAX_NAMES else ()
    with drawn_texts([title, *shown]) as texts:
        _save(_matrix(confusion, *map(shortened, texts)), Path(workdir) / "confusion.png")


def _matrix(confusion: np.ndarray, title: str, *names: str):
    """Returns the figure of `draw_confusion`."""
    from matplotlib.figure import Figure

    count = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    long = 0.08 * max(0, max(map(num_letters, names), default=0) - 12)  # inches that long names need
    inches = min(3.2 + 0.42 * count, 14) + long
    figure = Figure(figsize=(inches + 0.8, inches), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, shrink=0.8, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if names:
        axes.set_xticks(range(count), names, rotation=45, ha="right")
        axes.set_yticks(range(count), names)
        for (true, predicted), share in np.ndenumerate(shares):
            if confusion[true, predicted]:
                axes.text(
                    predicted,
                    true,
                    int(confusion[true, predicted]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 0.5 else "black",
                )
    return figure


def _save(figure, path: Path) -> None:
    """Writes a figure atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")

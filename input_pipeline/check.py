"""Decodes every frame of a data set before a run depends on it: python -m input_pipeline.check --config=FILE."""

import collections
import contextlib
import csv
import functools
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline.annotations import place
from input_pipeline.commands import command, end
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.videos import open_video
from input_pipeline.workers import follow_parent

USAGE = """python -m input_pipeline.check --config=FILE[:MODEL] [--config.data.field=value ...]
    [--out=DIR] [--workers=2]

Decodes every frame of the training and validation videos of a config, and counts the classes. It writes to DIR,
checks/NAME by default,
  report.csv   a row for each video: its format, its length, and what is broken
  exclude.txt  the broken ones, by their path from data.root; data.exclude=DIR/exclude.txt leaves them out
  missing.txt  the videos that a list names and that are not there
A check that was stopped goes on when given again; so does one that has ended, with what was broken.
Exit status: 0, or 1 where videos are broken, or 2 after a mistake."""

COLUMNS = (
    "path",
    "codec",
    "width",
    "height",
    "fps",
    "frames",
    "seconds",
    "rotation",
    "variable_rate",
    "audio",
    "error",
)

_HANG_SECONDS = 120.0  # without a sign of life from a process; a Video gives up earlier where it can
_ALL_CLASSES = 30  # at most, to print the count of each


@command(USAGE)
def main(argv) -> int:
    """Status 1 where videos are broken."""
    from configs.sheet import read_flags, require

    config, flags = read_flags(argv, {"out": None, "workers": "2"})
    workers = flags["workers"]
    require(workers.isdecimal() and int(workers) > 0, f"--workers={workers} must be a whole number of at least 1.")
    from input_pipeline import Pipeline

    pipeline = Pipeline(**config.data.to_dict())
    manifests = {"train": pipeline.train_manifest, "val": pipeline.val_manifest}
    out = Path(flags["out"] or Path("checks") / Path(flags["config"].partition(":")[0]).stem)
    out.mkdir(parents=True, exist_ok=True)
    records = {}
    for split, manifest in manifests.items():
        _print_classes(split, manifest.records, pipeline.class_names)
        for record in manifest.records:
            records.setdefault(place(record, pipeline.root), record)
    missing = sorted({name for manifest in manifests.values() for name in manifest.missing})
    if missing:
        print(f"{len(missing)} listed videos are missing, see {out / 'missing.txt'}.")
    _write_lines(out / "missing.txt", missing)
    examine = functools.partial(_examine, frame_rate=pipeline.frame_rate)
    broken = check(records, out / "report.csv", int(workers), examine)
    _write_lines(out / "exclude.txt", broken)
    if not broken:
        print(f"All {len(records)} videos are sound, see {out / 'report.csv'}.")
        return 0
    for name, error in list(broken.items())[:5]:
        print(f"  {_printable(name)}: {_printable(error)}")
    print(
        f"{len(broken)} of {len(records)} videos are broken: {out / 'report.csv'} says why, "
        f"--config.data.exclude={out / 'exclude.txt'} leaves them out."
    )
    return 1


def check(records: dict, report: Path, workers: int, examine: Callable, hang_seconds: float = _HANG_SECONDS) -> dict:
    """Examines the videos that `report` does not yet hold as sound, and adds a row for each.

    Args:
      records: name -> record.
      report: CSV file of COLUMNS, which may be there from an earlier check.
      workers: processes.
      examine: function of a record and of `beat`, to be called now and then, that gives a row.
      hang_seconds: after so much time without a beat, a process is ended and its video counts as broken.

    Returns:
      Name -> error of those that are broken.

    Raises:
      DataError: `report` is another file.
    """
    done = {row["path"] for row in _restart(report, records)}
    todo = {name: record for name, record in records.items() if name not in done}
    if len(todo) < len(records):
        print(f"{len(records) - len(todo)} of {len(records)} videos are in {report} as sound already.")
    broken, start, console = {}, time.monotonic(), Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.1f} videos/s, {task.fields[broken]} broken"),
        TimeRemainingColumn(),
    )
    with (
        open(report, "a", newline="", encoding="utf-8", errors="surrogateescape") as file,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("Checking", total=len(todo), speed=0.0, broken=0)
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        for count, (name, row) in enumerate(_results(todo, workers, examine, hang_seconds), start=1):
            writer.writerow({**row, "path": name})
            file.flush()
            if row.get("error"):
                broken[name] = row["error"]
            progress.update(bar, completed=count, speed=count / (time.monotonic() - start), broken=len(broken))
    return {name: broken[name] for name in records if name in broken}


def _restart(report, records):
    """Rewrites a report without what is to be examined again, and a last row that was not finished; gives its rows."""
    text, rows = "", []
    if report.exists():
        with open(report, newline="", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        if reader.fieldnames is not None and tuple(reader.fieldnames) != COLUMNS:
            raise DataError(f"{report} is no report of this command; choose another --out.")
        rows = [
            row
            for row in reader
            if None not in row.values() and None not in row and not (row["error"] and row["path"] in records)
        ]
    with _replaced(report) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _examine(record, beat, frame_rate) -> dict:
    """The row of a video; decodes all its frames."""
    row = {}
    try:
        video = open_video(record, frame_rate=frame_rate)
        frames = len(video.times)
        row |= {
            "frames": frames,
            "seconds": f"{video.duration:.3f}",
            "fps": f"{frames / video.duration:.3f}",
            "variable_rate": "yes" if _varies(video.times) else "no",
        }
        info = video.info()
        row |= {"codec": info.codec, "rotation": info.rotation, "audio": "yes" if info.audio else "no"}
        for number, frame in enumerate(video.each(range(frames))):
            if number == 0:
                row |= {"width": frame.shape[1], "height": frame.shape[0]}
            if number % 16 == 0:
                beat()
    except DecodeError as error:
        row["error"] = " ".join(str(error).split())
    except Exception as error:
        row["error"] = " ".join(f"{record.path}: {type(error).__name__}: {error}".split())
    return row


def _varies(times):
    """Whether intervals differ by more than the rounding to milliseconds that some containers do."""
    return len(times) > 2 and np.ptp(np.diff(times)) > 0.0025


class _Worker:
    """A process that examines one record after the other: `name`, at the moment; last sign of life `since`."""

    def __init__(self, examine):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, examine), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the parent's to answer
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that reading ends when the process does
        self.name, self.since = None, None

    def give(self, name, record):
        self.name, self.since = name, self.since and time.monotonic()
        try:
            self.pipe.send(record)
        except BrokenPipeError:
            pass  # it has ended, which the next look at it finds

    def end(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe, examine):
    cv2.setNumThreads(1)
    follow_parent()
    pipe.send(None)
    while True:
        pipe.send((examine(pipe.recv(), functools.partial(pipe.send, None)),))


def _results(records, workers, examine, hang_seconds) -> Iterator[tuple[str, dict]]:
    """Pairs (name, row) in the order in which they are ready, whatever a video does to its process."""
    waiting = collections.deque(records.items())
    crew = [_Worker(examine) for _ in range(min(workers, len(waiting)))]
    try:
        while True:
            for worker in crew:
                if worker.name is None and waiting:
                    worker.give(*waiting.popleft())
            busy = {worker.pipe: worker for worker in crew if worker.name is not None}
            if not busy:
                return
            ready = multiprocessing.connection.wait(busy, timeout=min(1.0, hang_seconds / 4))
            for pipe, worker in busy.items():
                row = None
                try:
                    if pipe in ready:
                        message = pipe.recv()
                        worker.since, row = time.monotonic(), message and message[0]
                    elif worker.since and time.monotonic() - worker.since > hang_seconds:
                        row = {"error": f"Decoding hangs for over {hang_seconds:g} s."}
                        _replace(crew, worker, examine)
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    if worker.since is None:
                        raise RuntimeError("The processes that decode cannot start.") from None
                    row = {"error": _ended(worker.process.exitcode)}
                    _replace(crew, worker, examine)
                if row is not None:
                    name, worker.name = worker.name, None
                    yield name, row
    finally:
        for worker in crew:
            worker.end()


def _replace(crew, worker, examine):
    worker.end()
    crew[crew.index(worker)] = _Worker(examine)


def _ended(status):
    cause = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return f"The process that decoded it ended with {cause}."


def _print_classes(split, records, names):
    counts = collections.Counter(record.label for record in records if record.label >= 0)
    if not counts:
        print(f"{split}: {len(records)} videos without labels.")
        return
    ranked = sorted(range(len(names)), key=lambda label: (-counts[label], label))
    most, least = counts[ranked[0]], min(counts.values())
    classes = "class" if len(counts) == 1 else "classes"
    print(
        f"{split}: {len(records)} videos of {len(counts)} {classes}, from {least} to {most} of a class "
        f"({most / least:.1f} times as many)."
    )
    if len(names) <= _ALL_CLASSES:
        _print_counts("videos", ranked, names, counts)
    absent = [label for label in ranked if not counts[label]]
    few = [label for label in ranked[::-1] if 0 < counts[label] < statistics.median(counts.values()) / 2]
    _print_counts("no videos", absent, names, counts)
    _print_counts("less than half the median", few, names, counts)


def _print_counts(title, labels, names, counts):
    if labels:
        shown = ", ".join(f"{_printable(names[label])} {counts[label]}" for label in labels[:_ALL_CLASSES])
        print(
            f"  {title}: {shown}"
            + (f" and {len(labels) - _ALL_CLASSES} more" if len(labels) > _ALL_CLASSES else "")
            + "."
        )


def _printable(text):
    return text.encode("utf-8", "backslashreplace").decode()


def _write_lines(path, lines: Iterable[str]):
    with _replaced(path) as file:
        file.writelines(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _replaced(path):
    """A file to write, which takes the place of `path` once it is whole."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


if __name__ == "__main__":
    end(main(sys.argv[1:]))

"""Decodes every frame of a data set before training on it: python -m input_pipeline.check --config=FILE."""

import collections
import csv
import functools
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline.annotations import relative_path
from input_pipeline.commands import command, run_program
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.files import require_lines, write_lines, write_text
from input_pipeline.outputs import output_folder
from input_pipeline.prefetch import portable
from input_pipeline.shards import SUMS, changed_files
from input_pipeline.stop_signals import stop_signals_blocked
from input_pipeline.text import print_line
from input_pipeline.videos import open_video, remarks
from input_pipeline.workers import follow_parent

USAGE = """python -m input_pipeline.check --config=FILE[:NAME] [--config.data.field=value ...]
    [--out=DIR] [--workers=2]

Decodes every frame of the training, validation and test videos of a config, and counts the classes. It writes to DIR,
by default checks/NAME,
  report.csv   one row for each video: its format, its length, its error if it is broken, and remarks on how it is read
  exclude.txt  the broken videos, as paths relative to data.root; data.exclude=DIR/exclude.txt leaves them out
  missing.txt  the listed videos that do not exist
The same command continues a check that was stopped. After a finished check it examines the broken videos again.
Clips of prepared shards are compared with the SHA-256 in their list, and the lists with SHA256SUMS.
Exit status: 0, or 1 if videos or lists are broken, or 2 after a mistake."""

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
    "remarks",
)

# A decoding process that sends no message for this time is killed. A Video usually reaches its time limit earlier.
_HANG_SECONDS = 120.0
_MAX_LISTED_CLASSES = 30  # classes whose counts are printed
_MAX_LISTED_VIDEOS = 5  # broken videos, and videos with remarks, that are printed


@command(USAGE)
def main(argv) -> int:
    """Returns 1 if videos or lists are broken, or 0."""
    from configs.loading import count_classes, read_flags, require
    from input_pipeline.pipeline import Pipeline  # imports grain, which the decoding processes do not need

    config, flags = read_flags(argv, {"out": None, "workers": "2"})
    workers = flags["workers"]
    require(workers.isdecimal() and int(workers) > 0, f"--workers={workers} must be a whole number of at least 1.")
    out = Path(flags["out"] or Path("checks") / Path(flags["config"].partition(":")[0]).stem)
    count_classes(config)
    with output_folder(out, "out"):
        return _check_videos(Pipeline(**config.data.to_dict()), out, int(workers))


def _check_videos(pipeline, out: Path, workers: int) -> int:
    """Checks the videos of a `Pipeline` and writes the files of the command to the folder `out`. Returns its status."""
    from input_pipeline.remarks import layout_remarks, unmatched_lines, unmatched_sentence  # imports grain, as above

    manifests, records = {part: pipeline.manifest(part) for part in pipeline.parts.names}, {}
    for split, manifest in manifests.items():
        _print_classes(split, manifest.records, pipeline.class_names)
        for record in manifest.records:
            records.setdefault(relative_path(record, pipeline.root), record)
    for sentence in layout_remarks(pipeline):
        print_line(sentence)
    if lines := unmatched_lines(pipeline):
        print_line(unmatched_sentence(lines))
    missing = sorted({name for manifest in manifests.values() for name in manifest.missing})
    require_lines([*records, *missing])  # exclude.txt and missing.txt hold one path per line
    if missing:
        print_line(f"{len(missing)} listed videos are missing, see {out / 'missing.txt'}.")
    write_lines(out / "missing.txt", missing)
    changed = _print_changed_files(manifests.values()) if pipeline.source == "shards" else 0
    limit = pipeline.limit_seconds
    examine = functools.partial(_examine, frame_rate=pipeline.frame_rate, limit_seconds=limit)
    broken = check(records, out / "report.csv", workers, examine, max(_HANG_SECONDS, 2 * limit))
    _print_remarks(out / "report.csv")
    if not broken:
        print_line(f"All {len(records)} videos can be decoded, see {out / 'report.csv'}.")
    for name, error in list(broken.items())[:_MAX_LISTED_VIDEOS]:
        print_line(f"  {name}: {error}")
    write_lines(out / "exclude.txt", broken)
    if not broken:
        return 1 if changed else 0
    print_line(
        f"{len(broken)} of {len(records)} videos are broken: {out / 'report.csv'} gives the reasons, "
        f"--config.data.exclude={out / 'exclude.txt'} leaves them out."
    )
    return 1


def check(records: dict, report: Path, workers: int, examine: Callable, hang_seconds: float = _HANG_SECONDS) -> dict:
    """Examines every video that has no row without an error in `report`, and appends its row.

    Args:
        records: {name: record}.
        report: CSV file with `COLUMNS`. It may exist from an earlier check.
        workers: number of processes.
        examine: function of a record and of `beat` that returns a row. It calls `beat()` regularly.
        hang_seconds: a process that sends no message for this time is killed, and its video counts as broken.

    Returns:
        {name: error} of the broken videos.

    Raises:
        DataError: `report` exists and is another kind of file.
    """
    done = {row["path"] for row in _restart(report, records)}
    todo = {name: record for name, record in records.items() if name not in done}
    if len(todo) < len(records):
        print_line(f"{len(records) - len(todo)} of {len(records)} videos are listed without an error in {report}.")
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
    """Removes the rows of videos to examine again, and an incomplete last row. Returns the rows that remain."""
    text, rows = "", []
    if report.exists():
        with open(report, newline="", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        # Reports of earlier versions have no remarks.
        if reader.fieldnames is not None and tuple(reader.fieldnames) not in (COLUMNS, COLUMNS[:-1]):
            raise DataError(f"{report} is not a report of this command. Choose another --out.")
        rows = [
            row
            for row in reader
            if None not in row.values() and None not in row and not (row["error"] and row["path"] in records)
        ]
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(report, table.getvalue())
    return rows


def _examine(record, beat, frame_rate, limit_seconds=60.0) -> dict:
    """Decodes all frames of a video. Returns its row of the report."""
    row = {}
    try:
        video = open_video(record, frame_rate=frame_rate, limit_seconds=limit_seconds)
        frames = len(video.times)
        row |= {
            "frames": frames,
            "seconds": f"{video.duration:.3f}",
            "fps": f"{frames / video.duration:.3f}",
            "variable_rate": "yes" if _varies(video.times) else "no",
            "remarks": " ".join(remarks(video)),
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
    return row


def _varies(times):
    """Returns whether frame intervals differ by more than the millisecond to which some containers round times."""
    return len(times) > 2 and np.ptp(np.diff(times)) > 0.0025


class _Worker:
    """A process that examines one record at a time.

    `name` is the name of that record, or None while the process is idle. `last_message` is the time of the last message
    from the process, or None before it has started.
    """

    def __init__(self, examine):
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_pipe, examine), daemon=True)
        with stop_signals_blocked():  # the parent handles them
            self.process.start()
        child_pipe.close()  # so that `recv` raises EOFError when the process ends
        self.name, self.last_message = None, None

    def submit(self, name, record):
        self.name, self.last_message = name, self.last_message and time.monotonic()
        try:
            self.pipe.send(record)
        except BrokenPipeError:
            pass  # the process has ended; the next `recv` raises

    def end(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe, examine):
    """Runs in the process. Sends None as a heartbeat, and for each record a tuple of its row, or an exception."""
    cv2.setNumThreads(1)
    follow_parent()
    try:
        pipe.send(None)
        while True:
            record = pipe.recv()
            try:
                answer = (examine(record, functools.partial(pipe.send, None)),)
            except (EOFError, BrokenPipeError, ConnectionResetError):  # of a heartbeat
                raise
            except Exception as error:  # an error of the program, which the parent raises
                answer = portable(error)
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended


def _results(records, workers, examine, hang_seconds) -> Iterator[tuple[str, dict]]:
    """Yields (name, row) of each record as soon as it is examined, even if its video crashes or blocks the process.

    Raises:
        Exception: `examine` raised it. It is an error of the program, not of the video.
    """
    waiting = collections.deque(records.items())
    crew = [_Worker(examine) for _ in range(min(workers, len(waiting)))]
    try:
        while True:
            for worker in crew:
                if worker.name is None and waiting:
                    worker.submit(*waiting.popleft())
            busy = {worker.pipe: worker for worker in crew if worker.name is not None}
            if not busy:
                return
            ready = multiprocessing.connection.wait(busy, timeout=min(1.0, hang_seconds / 4))
            for pipe, worker in busy.items():
                row = None
                try:
                    if pipe in ready:
                        message = pipe.recv()
                        if isinstance(message, Exception):
                            raise message
                        worker.last_message, row = time.monotonic(), message and message[0]
                    elif worker.last_message and time.monotonic() - worker.last_message > hang_seconds:
                        row = {"error": f"Decoding hangs for over {hang_seconds:g} s."}
                        _replace(crew, worker, examine)
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    if worker.last_message is None:
                        raise RuntimeError("The processes that decode cannot start.") from None
                    row = {"error": _exit_message(worker.process.exitcode)}
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


def _exit_message(status):
    cause = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return f"The process that decoded the video ended with {cause}."


def _print_changed_files(manifests) -> int:
    """Prints which lists of prepared clips differ from their checksums. Returns their number."""
    folders = sorted({os.path.dirname(manifest.path) for manifest in manifests})
    paths = [os.path.join(folder, name) for folder in folders for name in changed_files(folder)]
    for path in paths:
        print_line(f"{path} differs from its SHA-256 in {SUMS}. Restore it from a copy, or prepare again.")
    return len(paths)


def _print_remarks(report):
    """Prints how many videos of a report have remarks, and the first five of these."""
    with open(report, newline="", encoding="utf-8", errors="surrogateescape") as file:
        noted = [row for row in csv.DictReader(file) if row["remarks"]]
    for row in noted[:_MAX_LISTED_VIDEOS]:
        print_line(f"  {row['path']}: {row['remarks']}")
    if noted:
        print_line(f"{len(noted)} videos have remarks, see {report}.")


def _print_classes(split, records, names):
    counts = collections.Counter(number for record in records for number in record.class_numbers)
    if not counts:
        print_line(f"{split}: {len(records)} videos without labels.")
        return
    ranked = sorted(range(len(names)), key=lambda label: (-counts[label], label))
    most, least = counts[ranked[0]], min(counts.values())
    classes = "class" if len(counts) == 1 else "classes"
    print_line(
        f"{split}: {len(records)} videos of {len(counts)} {classes}. The largest class has {most}, and the smallest "
        f"{least}."
    )
    if len(names) <= _MAX_LISTED_CLASSES:
        _print_counts("videos", ranked, names, counts)
    absent = [label for label in ranked if not counts[label]]
    few = [label for label in ranked[::-1] if 0 < counts[label] < statistics.median(counts.values()) / 2]
    _print_counts("no videos", absent, names, counts)
    _print_counts("less than half the median", few, names, counts)


def _print_counts(title, labels, names, counts):
    if labels:
        shown = ", ".join(f"{names[label]} {counts[label]}" for label in labels[:_MAX_LISTED_CLASSES])
        print_line(
            f"  {title}: {shown}"
            + (f" and {len(labels) - _MAX_LISTED_CLASSES} more" if len(labels) > _MAX_LISTED_CLASSES else "")
            + "."
        )


if __name__ == "__main__":
    run_program(main)

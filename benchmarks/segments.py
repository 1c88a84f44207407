"""How near the ends of the segments of spliced videos are to the true ones, with the model of a run.

Command: python -m benchmarks.segments --workdir=RUN --data=FOLDER [--every=1.0] [--window=SECONDS]

FOLDER holds long videos and the list `train.csv` of their parts, with `path,label,start,end`, such as `python -m
tests.own_videos DIR --long` writes in `DIR-long`. Parts of one class that follow each other count as one stretch. An
end of a stretch is found if an end of a segment of its class lies within `--every`. Prints one JSON line: the number of
ends, of those that were found, and the distances in seconds, null where a video has no segment of the class.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from benchmarks.arguments import parse
from benchmarks.measure import report
from vidformers import load
from vidformers.inference.timeline.segments import Segment

_GAP = 0.1  # seconds between two parts that follow each other


class Stretch(NamedTuple):
    """A part of a video in which a class is seen, in seconds."""

    name: str
    start: float
    end: float


def read_stretches(folder: Path) -> dict[str, list[Stretch]]:
    """Returns the stretches of each video of the list in `folder`, in order."""
    stretches: dict[str, list[Stretch]] = {}
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        rows = [
            (row["path"], Stretch(row["label"], float(row["start"]), float(row["end"]))) for row in csv.DictReader(file)
        ]
    for path, part in sorted(rows, key=lambda row: (row[0], row[1].start)):
        found = stretches.setdefault(path, [])
        if found and found[-1].name == part.name and part.start - found[-1].end < _GAP:
            found[-1] = found[-1]._replace(end=part.end)
        else:
            found.append(part)
    return stretches


def distances(stretches: list[Stretch], segments: list[Segment]) -> list[float | None]:
    """Returns the seconds from the start and end of each stretch to the nearest of the segments of its class."""
    found: list[float | None] = []
    for stretch in stretches:
        same = [segment for segment in segments if segment.name == stretch.name]
        found.append(min((abs(segment.start - stretch.start) for segment in same), default=None))
        found.append(min((abs(segment.end - stretch.end) for segment in same), default=None))
    return found


def main():
    args = parse(__doc__, workdir=None, data=None, every=1.0, window=0.0)
    model, all_distances, count = load(args.workdir), [], 0
    for path, stretches in read_stretches(Path(args.data)).items():
        timeline = model.timeline(str(Path(args.data) / path), args.every, window=args.window or None)
        all_distances += distances(stretches, timeline.segments)
        count += len(timeline.segments)
    report(
        benchmark="segments",
        workdir=args.workdir,
        step=model.step,
        every=args.every,
        window=args.window or model.median_seconds(),
        segments=count,
        ends=len(all_distances),
        found=sum(distance is not None and distance <= args.every for distance in all_distances),
        distances=all_distances,
    )


if __name__ == "__main__":
    main()

"""`answers.jsonl` in the folder of a run: what the model answered for each video of the last evaluations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.annotations import Record, relative_path
from input_pipeline.files import atomic_file
from input_pipeline.outputs import beside, locked
from vidformers.training.evaluate import EvalResult

ANSWERS = "answers.jsonl"


def write_answers(workdir: Path, evaluation: dict[str, str], lines: Iterator[dict[str, Any]]) -> None:
    """Replaces the lines of one evaluation in `answers.jsonl`, atomically. The lines of all others stay.

    Two commands may evaluate the same run at the same time. The second one waits until the first one has written.

    Args:
        workdir: the folder of the run.
        evaluation: the entries that every line of it starts with: its `protocol`, such as '4x3', and its `part`.
        lines: see `answer_lines`.
    Raises:
        OSError: the file cannot be read or written. It is then as it was.
    """
    path = Path(workdir) / ANSWERS
    with locked(beside(path)), atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.writelines(_lines_of_others(path, evaluation))
        for line in lines:
            file.write(json.dumps(evaluation | line).encode() + b"\n")


def _lines_of_others(path: Path, evaluation: dict[str, str]) -> Iterator[bytes]:
    """Yields the lines of other evaluations as they are."""
    start = json.dumps(evaluation)[:-1].encode() + b","
    if path.exists():
        with open(path, "rb") as file:
            yield from (line.rstrip(b"\n") + b"\n" for line in file if not line.startswith(start))


def answer_lines(
    step: int, result: EvalResult, scoring, records: tuple[Record, ...], root: str, classes
) -> Iterator[dict[str, Any]]:
    """Yields a line for each video, in the order of the list.

    A line holds the `step`, the row `id` of the video in the list, its `path` from data.root in the form of
    data.exclude, the `start` and `end` of a part in seconds, the true `labels`, and the five best classes as `top`.
    Both hold classes with their probabilities, averaged over the views. A video that could not be decoded has an
    `error`, and neither `top` nor probabilities.

    Args:
        step: the step of the parameters.
        result: the result in process 0.
        scoring: how `result.videos` is scored.
        records: the videos of the list.
        root: the folder data.root.
        classes: the class names by label.
    """
    errors, videos = dict(result.skipped), result.videos
    rows = {int(id): row for row, id in enumerate(videos.id)}
    for record in records:
        line = {"step": step, "id": record.id, "path": relative_path(record, root)}
        line |= {name: value for name in ("start", "end") if (value := getattr(record, name)) is not None}
        if record.id in rows:
            row = rows[record.id]
            scores = videos.scores[row]
            line["labels"] = _with_probabilities(scoring.labels(videos.label[row]), scores, scoring, classes)
            line["top"] = _with_probabilities(videos.best[row], scores, scoring, classes)
        elif record.id in errors:
            line |= {"labels": [{"class": classes[k]} for k in record.class_numbers], "error": errors[record.id]}
        yield line


def _with_probabilities(labels, scores: np.ndarray, scoring, classes) -> list[dict[str, Any]]:
    probabilities = scoring.probabilities(scores[np.asarray(labels, int)]).tolist()
    return [
        {"class": classes[label], "probability": probability}
        for label, probability in zip(labels, probabilities, strict=True)
    ]

"""`answers.jsonl` holds the last evaluation of each protocol, a line for each video of the list."""

import errno
import json

import numpy as np
import pytest

from input_pipeline.annotations import Record
from vidformers.training.answers import answer_lines, write_answers
from vidformers.training.evaluate import EvalResult
from vidformers.training.scoring import SINGLE_LABEL, MultiLabel, VideoScores

CLASSES = ("hop", "skip", "jump")
RECORDS = (
    Record(0, "/data/val/a.mp4", 0, 1),
    Record(1, "/data/val/h\udce4.mp4", 2, 2),  # a name that is not UTF-8
    Record(2, "/data/long.mp4", 1, 3, start=1.5, end=4.0),
    Record(3, "/elsewhere/b.mp4", 1, 4),
)


def result(skipped=(1,), label=(0, 1, 1)):
    """Returns the result for all records but those that were skipped."""
    p = np.float32([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5], [0.25, 0.5, 0.25]])
    ids = np.array([record.id for record in RECORDS if record.id not in skipped])
    best = np.argsort(-p, axis=1, kind="stable")
    return EvalResult({}, [(id, "it ends early") for id in skipped], VideoScores(ids, np.array(label), np.log(p), best))


def lines(step=8):
    return answer_lines(step, result(), SINGLE_LABEL, RECORDS, "/data", CLASSES)


def evaluation(protocol, part="val"):
    return {"protocol": protocol, "part": part}


def read(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.mark.quick
def test_a_line_holds_the_video_its_labels_and_the_best_classes_with_probabilities(tmp_path):
    write_answers(tmp_path, evaluation("1x1"), lines())
    first, bad, part, other = read(tmp_path)
    assert first == {
        "protocol": "1x1",
        "part": "val",
        "step": 8,
        "id": 0,
        "path": "val/a.mp4",
        "labels": [{"class": "hop", "probability": pytest.approx(0.5)}],
        "top": [
            {"class": name, "probability": pytest.approx(p)} for name, p in zip(CLASSES, (0.5, 0.25, 0.25), strict=True)
        ],
    }
    assert bad["path"] == "val/h\udce4.mp4" and bad["error"] == "it ends early"
    assert bad["labels"] == [{"class": "jump"}] and "top" not in bad
    assert (part["path"], part["start"], part["end"]) == ("long.mp4#t=1.5,4", 1.5, 4.0)
    assert part["top"][0] == {"class": "jump", "probability": pytest.approx(0.5)}
    assert part["labels"] == [{"class": "skip", "probability": pytest.approx(0.375)}]
    assert other["path"] == "/elsewhere/b.mp4" and [row["id"] for row in read(tmp_path)] == [0, 1, 2, 3]


def test_a_video_has_the_probability_of_each_of_its_labels():
    logits = np.float32([[2, -1, 0]])
    videos = VideoScores(np.array([0]), np.float32([[1, 0, 1]]), logits, np.array([[0, 2, 1]]))
    (line,) = answer_lines(1, EvalResult({}, [], videos), MultiLabel(), RECORDS[:1], "/data", CLASSES)
    p = 1 / (1 + np.exp(-logits[0]))
    assert line["labels"] == [
        {"class": name, "probability": pytest.approx(p[i])} for i, name in ((0, "hop"), (2, "jump"))
    ]
    assert [row["class"] for row in line["top"]] == ["hop", "jump", "skip"]


def test_an_evaluation_replaces_its_own_lines_and_keeps_those_of_other_protocols(tmp_path):
    for views, part, step in (("1x1", "val", 4), ("11x1", "val", 4), ("1x1", "test", 4), ("1x1", "val", 8)):
        write_answers(tmp_path, evaluation(views, part), lines(step))
    assert [(row["protocol"], row["part"], row["step"]) for row in read(tmp_path)] == [
        *[("11x1", "val", 4)] * 4, *[("1x1", "test", 4)] * 4, *[("1x1", "val", 8)] * 4,
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl"}


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    write_answers(tmp_path, evaluation("1x1"), lines())
    before = (tmp_path / "answers.jsonl").read_bytes()

    def failing():
        yield from lines()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_answers(tmp_path, evaluation("4x3"), failing())
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl"}

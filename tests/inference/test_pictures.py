"""Every picture is drawn whatever the names of classes and files are, and without a warning."""

import json
import warnings

import cv2
import numpy as np
import pytest
from names import HOSTILE

from input_pipeline.show import draw
from vidformers.inference.clip import Clip
from vidformers.inference.explain.explainer import Explanation, draw_beside
from vidformers.inference.explain.pictures import draw_lines, draw_strip
from vidformers.training.metrics import draw_confusion, draw_curves

pytestmark = pytest.mark.quick
NAMES = list(HOSTILE.values())


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings(action="error"):
        yield


def height_and_width(file) -> tuple[int, int]:
    content = np.frombuffer(file, np.uint8) if isinstance(file, bytes) else np.fromfile(file, np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR).shape[:2]


@pytest.mark.parametrize("names", [NAMES, ["x" * 300] * 2], ids=["hostile", "two long"])
def test_the_confusion_matrix(names, tmp_path):
    draw_confusion(tmp_path, np.eye(len(names), dtype=int), names, "".join(NAMES))
    height, width = height_and_width(tmp_path / "confusion.png")
    assert 400 < height < width < 2400


def test_the_curves(tmp_path):
    rows = [{"step": 1, "time": 0.0} | {f"{name}/loss": 1.0, f"{name}/top1@1x1": 0.5} for name in NAMES]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(tmp_path)
    assert height_and_width(tmp_path / "curves.png") == (480, 1320)


def test_explanations():
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    maps, shares = np.ones((2, 2, 2)), {name: [0.5] for name in NAMES}
    draw_lines(shares, NAMES[0], NAMES[1])
    explanations = {
        f"{name} {number}": Explanation(
            Clip("".join(NAMES), clip, np.arange(2), ""), name, 1.0, np.ones(1), maps, maps, None, np.ones(2),
            np.ones((1, 1, 2)), {name: [0.5]},
        )
        for number, name in enumerate(NAMES)
    }  # fmt: skip
    draw_beside(explanations)
    for explanation in list(explanations.values())[:2]:
        files = explanation.files()
        assert json.loads(files["explanation.json"])["class"] == explanation.target and height_and_width(
            files["time.png"]
        )
    draw_strip(np.ones((1, 2)), clip, np.arange(2), "".join(NAMES))


def test_a_batch_of_clips():
    draw(NAMES, np.zeros((len(NAMES), 2, 8, 8, 3), np.uint8), np.zeros((len(NAMES), 2), int))

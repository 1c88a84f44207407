"""With data.labels=many, every mode scores each class by itself: training, evaluation, predictions and exports."""

import csv
import json
import signal
import subprocess
import sys

import av
import jax
import numpy as np
import pytest
from command import BAD, arguments, assert_same_run, one_sentence, render, rows

import main
from vidformers import load
from vidformers.training.evaluate import Evaluator

LABELS = 10
FIELDS = {
    "data.labels": "many",
    "data.train": "many.csv",
    "data.val": "many_val.csv",
    "data.flip_swaps": "()",
    "data.max_bad_fraction": 1.0,
    "train.total_steps": 4,
    "train.log_every_steps": 1,
    "train.eval_every_steps": 2,
    "train.patience": 3,
    "optim.layer_decay": 0.7,
    "eval.threshold": 0.45,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Videos that have their own class and those below it that divide it; the first one has no label."""
    root = render(tmp_path_factory.mktemp("several") / "clips")
    for source, name in (("train", "many"), ("val", "many_val")):
        with open(root / f"{source}.csv", newline="") as file:
            videos = list(csv.reader(file))[1:]
        with open(root / f"{name}.csv", "w", newline="") as file:
            lines = [(path, ";".join(str(k) for k in range(1, int(k) + 1) if int(k) % k == 0)) for path, k in videos]
            csv.writer(file).writerows([("path", "label"), *lines])
    return root


def run(data, workdir, *flags, mode="train", **fields):
    return main.main(["main.py", *arguments(data, workdir, FIELDS | fields, mode=mode), *flags])


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert run(data, workdir) == 0
    return workdir


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_evaluated_by_mean_average_precision(trained, data):
    evaluated = {name for row in rows(trained) for name in row if name.startswith("val/")}
    assert evaluated == {f"val/{name}@{views}" for name in ("mAP", "loss", "videos") for views in ("1x1", "2x1")}
    about = json.loads((trained / "run.json").read_text())
    assert about["config"]["checkpoint"]["best"] == "val/mAP@1x1"
    with av.open(str(data / "train" / "000000.mp4")) as video:
        assert about["data"]["median_seconds"] == pytest.approx(video.duration / av.time_base)
    assert (trained / "curves.png").exists() and not (trained / "confusion.png").exists()
    with open(data / "many_val.csv", newline="") as file:
        expected = [(path, label.split(";") if label else []) for path, label in list(csv.reader(file))[1:]]
    for views in ("1x1", "2x1"):
        answers = [row for row in lines(trained / "answers.jsonl") if row["protocol"] == views]
        assert [(row["path"], [label["class"] for label in row["labels"]]) for row in answers] == expected
        for row in answers:
            best = {entry["class"]: entry["probability"] for entry in row["top"]}
            assert len(best) == 5 and list(best.values()) == sorted(best.values(), reverse=True)
            lowest = min(best.values())
            assert all(best.get(label["class"], lowest) >= label["probability"] for label in row["labels"])


def test_a_run_stopped_and_continued_with_workers_computes_the_same_bit_for_bit(trained, data, tmp_path, monkeypatch):
    run_step, calls = Evaluator.run_step, []

    def stopped(evaluator, *arguments):
        calls.append(evaluator)
        if len(calls) == 2:  # in the evaluation of step 2
            signal.raise_signal(signal.SIGTERM)
        return run_step(evaluator, *arguments)

    monkeypatch.setattr(Evaluator, "run_step", stopped)
    assert run(data, tmp_path) == 128 + signal.SIGTERM
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert run(data, tmp_path, **{"data.workers": 2}) == 0
    assert_same_run(tmp_path, trained, step=FIELDS["train.total_steps"])


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_devices_compute_what_eight_compute_to_rounding(count, trained, data, tmp_path, monkeypatch):
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda *backend: devices)
    assert run(data, tmp_path, **{"train.eval_every_steps": "none", "train.patience": "none"}) == 0
    expected = [row for row in rows(trained) if row.keys() & {"train/loss", "val/mAP@2x1"}]
    assert len(expected) == FIELDS["train.total_steps"] + 1
    for row, other in zip(rows(tmp_path), expected, strict=True):
        row.pop("val/mAP@2x1", None), other.pop("val/mAP@2x1", None)  # rounding swaps videos with nearly equal scores
        assert row == pytest.approx(other, rel=1e-3)


def test_an_evaluation_writes_the_figures_of_each_class(trained, data):
    assert run(data, trained, mode="eval") == 0
    result = json.loads((trained / "eval_2x1.json").read_text())
    precisions = [row["average_precision"] for row in result["classes"] if row["average_precision"] is not None]
    assert result["val/mAP@2x1"] == pytest.approx(np.mean(precisions)) and len(result["classes"]) == LABELS
    assert result["val/mAP@2x1"] == [row["val/mAP@2x1"] for row in rows(trained) if "val/mAP@2x1" in row][-1]
    assert "confusion" not in result and result["root"] == str(data)
    assert [row["class"] for row in result["classes"]] == list(map(str, range(LABELS)))


def test_answers_of_another_part_are_of_its_videos_and_name_it(trained, data, capsys):
    before = lines(trained / "answers.jsonl")
    assert run(data, trained, "--part=test", mode="eval") == 2
    assert "has no test part (data.source=csv). Set data.test to its list." in one_sentence(capsys.readouterr().err)
    videos = {"train/000003.mp4": ["1", "3"], BAD: ["7"], "val/000002.mp4": [], "train/000009.mp4": ["9"]}
    (data / "third.csv").write_text("".join(f"{path},{';'.join(labels)}\n" for path, labels in videos.items()))
    assert run(data, trained, "--part=test", mode="eval", **{"data.test": "third.csv", "eval.on_bad": "skip"}) == 0
    after = lines(trained / "answers.jsonl")
    assert [row for row in after if row["part"] == "val"] == before
    of_part = [row for row in after if row["part"] == "test"]
    assert [(row["id"], row["path"], row["protocol"]) for row in of_part] == [
        (number, path, "2x1") for number, path in enumerate(videos)
    ]
    assert [[label["class"] for label in row["labels"]] for row in of_part] == list(videos.values())
    assert [row["path"] for row in of_part if "error" in row] == [BAD]
    assert json.loads((trained / "eval_test_2x1.json").read_text())["test/videos@2x1"] == 3


def test_predictions_are_the_classes_above_the_threshold(trained, data, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    assert run(data, trained, f"--video={data}/val.csv", f"--out={out}", mode="predict") == 0
    model = load(trained)
    videos = sorted(data.glob("val/*.mp4"))
    capsys.readouterr()
    for row, prediction in zip(lines(out), model.predict_many(videos), strict=True):
        p = prediction.probabilities
        assert row["predicted"] == [model.classes[k] for k in np.argsort(-p, kind="stable") if p[k] > 0.45]
        assert len(row["top"]) == 5 and 0 < p.min() and p.max() < 1 and not np.isclose(p.sum(), 1)
    assert run(data, trained, f"--video={videos[0]}", mode="predict") == 0
    assert capsys.readouterr().out.count("predicted") == len(lines(out)[0]["predicted"])
    assert run(data, trained, f"--video={videos[0]}", mode="predict", **{"eval.threshold": 0.999}) == 0
    assert "No class is above eval.threshold=0.999." in capsys.readouterr().out


def test_an_export_predicts_the_same_classes_by_itself(trained, data, tmp_path):
    assert run(data, trained, f"--out={tmp_path}/export", mode="export") == 0
    model = load(trained)
    (clip,) = model.clips([next(data.glob("val/*.mp4"))])
    probabilities, _ = model.compute(clip.frames[None, None], clip.index[None, None])
    np.save(tmp_path / "video.npy", clip.frames)
    program = subprocess.run(
        [sys.executable, tmp_path / "export" / "run.py", tmp_path / "video.npy"], capture_output=True, text=True
    )
    assert program.stderr == ""
    predicted = len(model.predicted(probabilities[0]))
    expected = [
        f"{p:7.2%}  {name}{'  predicted' if rank < predicted else ''}"
        for rank, (name, p) in enumerate(model.best(probabilities[0], max(5, predicted)))
    ]
    assert program.stdout.splitlines() == expected
    command = [sys.executable, tmp_path / "export" / "run.py", "--help"]
    assert "python run.py video.npy, see README.md" in subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.quick
def test_what_needs_one_label_is_refused(data, tmp_path, capsys):
    assert run(data, tmp_path, **{"checkpoint.best": "val/top1@1x1"}) == 2
    error = one_sentence(capsys.readouterr().err)
    assert "checkpoint.best=val/top1@1x1 must be one of val/mAP@1x1, val/mAP@2x1." in error

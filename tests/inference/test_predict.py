"""Predictions of a trained run and what they rest on: in Python, from the command line, for videos good and bad."""

import json
import os
import shutil
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from command import BAD, ROOT, Run, arguments, render

from input_pipeline.annotations import read_manifest
from vidformers import ConfigError, load

FIELDS = {"eval.on_bad": "skip", "train.total_steps": 4, "train.eval_every_steps": "none", "eval.batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    Run(arguments(data, workdir, {**FIELDS, "data.classes": "classes.txt"})).finish()
    return workdir


def command(data, workdir, video, *more, mode="predict"):
    return [
        *arguments("nowhere", workdir, {**FIELDS, "data.classes": "none", "data.flip_swaps": "()"}, mode=mode),
        f"--video={video}",
        *more,
    ]


def test_from_python_in_three_lines(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    run = json.loads((trained / "run.json").read_text())
    run["config"]["mesh"]["fsdp"] = 64  # as if trained on devices that are not here
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    model = load(str(tmp_path / "run"))
    best = model.predict(data / "val" / "000000.mp4", top=10)
    names = (data / "classes.txt").read_text().split("\n")[:10]
    assert {name for name, _ in best} == set(names)
    probabilities = [p for _, p in best]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"000007\.mp4"):
        model.predict(data / BAD)


def test_it_agrees_with_the_evaluation_and_compiles_once(data, trained, tmp_path):
    model = load(trained)
    records = read_manifest("val.csv", root=str(data), num_classes=10).records
    found = list(model.predict_many([record.path for record in records]))
    assert [each.video for each in found] == [record.path for record in records]
    list(model.predict_many([record.path for record in records[:3]]))
    assert model._predict._cache_size() == 1
    losses = [-np.log(each.probabilities[record.label]) for each, record in zip(found, records, strict=True)]
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    key = next(name for name in last if name.startswith("val/loss@2"))
    assert np.mean(losses) == pytest.approx(last[key], rel=1e-5)


def test_many_videos_from_the_command_line(data, trained, tmp_path):
    listed = [f"{data}/val/00000{i}.mp4" for i in range(4)] + [f"{data}/{BAD}", f"{data}/none.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(listed) + "\n")
    out, features = tmp_path / "pred.jsonl", tmp_path / "feats.npz"
    said = Run(command(data, trained, tmp_path / "list.txt", f"--out={out}", f"--features={features}")).finish()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in rows] == listed
    assert ["error" in row for row in rows] == [False] * 4 + [True] * 2 and "2 would not decode" in said
    assert len(rows[0]["top"]) == 5 and rows[0]["top"][0]["class"] in said
    with np.load(features) as arrays:
        assert arrays["video"].tolist() == listed[:4] and arrays["features"].shape == (4, 16)

    whole = out.read_text()
    out.write_text("\n".join(whole.split("\n")[:2]) + '\n{"video": "ha')  # as a kill leaves it
    again = Run(command(data, trained, tmp_path / "list.txt", f"--out={out}")).finish()
    assert "after the 2 that" in again
    assert [json.loads(line)["video"] for line in out.read_text().splitlines()] == listed
    (tmp_path / "other.txt").write_text("\n".join(listed[::-1]) + "\n")
    sentence = Run(command(data, trained, tmp_path / "other.txt", f"--out={out}")).refused()
    assert "holds predictions of other videos" in sentence


def test_a_script_without_a_guard(data, trained, tmp_path):
    video = data / "val" / "000000.mp4"
    (tmp_path / "script.py").write_text(
        f"from vidformers import load\nprint(load({str(trained)!r}).predict({str(video)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and done.stdout.startswith("[('"), done.stderr


def test_what_counts_for_a_class(data, trained, tmp_path):
    (tmp_path / "list.txt").write_text(f"{data}/val/000000.mp4\n{data}/{BAD}\n{data}/train/000000.mp4\n")
    out = tmp_path / "out"
    said = Run(command(data, trained, tmp_path / "list.txt", f"--out={out}", "--target=grow", mode="explain")).finish()
    assert sorted(folder.name for folder in out.iterdir()) == ["0000_000000", "0002_000000"]
    assert "Left out, it will not decode" in said and "what counts for grow" in said
    folder = out / "0000_000000"
    assert json.loads((folder / "explanation.json").read_text()) == {
        "video": f"{data}/val/000000.mp4",
        "class": "grow",
        "dictionary": {},
    }
    with np.load(folder / "explanation.npz") as arrays:
        frames, grid = arrays["frames"], arrays["gradient"].shape
        assert arrays["rollout"].shape == grid and arrays["heads"].shape == (2, *grid)
        assert arrays["probabilities"].sum() == pytest.approx(1)
    with av.open(folder / "relevance.mp4") as video:
        decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(decoded) == len(frames)
    side = decoded[0].shape[0]  # the frames themselves come first
    small = np.stack(
        [cv2.resize(frame[:, :side], frames.shape[1:3], interpolation=cv2.INTER_AREA) for frame in decoded]
    )
    assert np.abs(small.astype(float) - frames).mean() < 8
    strip = cv2.imread(folder / "relevance.png")
    assert strip.shape[1] > len(frames) * side and strip.std() > 20
    assert (
        "--target=crawl is none of slide left"
        in Run(command(data, trained, data / "val", f"--out={out}", "--target=crawl", mode="explain")).refused()
    )


def test_mistakes(data, trained, tmp_path):
    for flags, words in (
        ([f"--video={tmp_path}/none.mp4"], "none.mp4 does not exist"),
        ([f"--video={tmp_path}"], "holds no videos"),
        ([], "--mode=predict needs --video"),
    ):
        sentence = Run([*command(data, trained, "x")[:-1], *flags]).refused()
        assert words in sentence
    with pytest.raises(ConfigError, match=r"holds no run: there is no .*run\.json"):
        load(tmp_path)
    shutil.copy(trained / "run.json", tmp_path / "run.json")
    with pytest.raises(ConfigError, match="holds no checkpoints to predict with"):
        load(tmp_path)

"""Predictions and explanations of a trained run, from Python and from the command line."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import av
import cv2
import jax
import numpy as np
import pytest
from command import BAD, ROOT, Run, arguments, one_sentence, render
from names import HOSTILE, HOSTILE_FILES, assert_harmless
from numbered import write

import main
from input_pipeline.annotations import read_manifest
from input_pipeline.decode import Video
from input_pipeline.outputs import output_file
from input_pipeline.text import printable
from vidformers import ConfigError, load
from vidformers.parallel.batch import put_batch
from vidformers.parallel.mesh import make_mesh
from vidformers.training.workdir import write_run_json

FIELDS = {"eval.on_bad": "skip", "train.total_steps": 4, "train.eval_every_steps": "none", "eval.batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    Run(arguments(data, workdir, {**FIELDS, "data.classes": "classes.txt"})).finish()
    return workdir


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """The model of a run that was trained on devices that this machine does not have."""
    workdir = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(trained, workdir)
    run = json.loads((trained / "run.json").read_text())
    run["config"]["mesh"]["fsdp"] = 64
    write_run_json(workdir, run)
    return load(str(workdir))


def command(workdir, video, *more, mode="predict"):
    return [
        *arguments("nowhere", workdir, {**FIELDS, "data.classes": "none", "data.flip_swaps": "()"}, mode=mode),
        f"--video={video}",
        *more,
    ]


@pytest.fixture
def run(capsys):
    """Runs `main.py` in this process; returns what it printed. It must succeed and print nothing on stderr."""

    def call(arguments):
        code = main.main(["main.py", *arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), f"status {code}\n{out}\n{err}"
        return out

    return call


@pytest.fixture
def refused(capsys):
    """Runs `main.py` in this process; returns the one sentence with which it must refuse."""

    def call(arguments):
        code = main.main(["main.py", *arguments])
        out, err = capsys.readouterr()
        assert code == 2, f"status {code}\n{out}\n{err}"
        return one_sentence(err)

    return call


def test_prediction_from_python(data, model, monkeypatch):
    best = model.predict(data / "val" / "000000.mp4", top=10)
    names = (data / "classes.txt").read_text().split("\n")[:10]
    assert {name for name, _ in best} == set(names)
    probabilities = [p for _, p in best]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"000007\.mp4"):
        model.predict(data / BAD)
    full = Mock(side_effect=jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    monkeypatch.setattr(model, "_predict", full)
    with pytest.raises(ConfigError, match=r"eval\.batch_size=.* needs more memory than a device has\. Lower"):
        model.predict(data / "val" / "000000.mp4")
    monkeypatch.setattr(av, "open", Mock(side_effect=TypeError("a fault of the program")))
    with pytest.raises(TypeError, match="a fault of the program"):
        model.predict(data / "val" / "000000.mp4")


def test_predictions_agree_with_the_evaluation_and_no_row_is_computed_in_vain(data, trained, monkeypatch):
    records = read_manifest("val.csv", root=str(data), num_classes=10).records
    rows = []
    monkeypatch.setattr("vidformers.inference.predictor.make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    model = load(trained)

    def count_rows(mesh, batch):
        rows.append(len(batch["video"]))
        return put_batch(mesh, batch)

    monkeypatch.setattr("vidformers.inference.predictor.put_batch", count_rows)
    paths = [record.path for record in records]
    predictions = list(model.predict_many(paths))
    assert [prediction.video for prediction in predictions] == paths
    few = list(model.predict_many(paths[:3]))
    assert rows == [4, 4, 1, 1, 1, 1, 1]
    for one, other in zip(few, predictions, strict=False):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        np.testing.assert_allclose(one.features, other.features, atol=1e-5)
    assert list(model.predict_many([data / BAD]))[0].error and len(rows) == 7
    losses = [-np.log(each.probabilities[record.label]) for each, record in zip(predictions, records, strict=True)]
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    key = next(name for name in last if name.startswith("val/loss@2"))
    assert np.mean(losses) == pytest.approx(last[key], rel=1e-5)


def test_arrays_and_lists_are_predicted_as_their_files(data, model):
    paths = [str(data / "val" / f"00000{number}.mp4") for number in (0, 2)]  # 0 and 1 are one clip and its reversal
    video = Video(paths[1])
    array = video.frames(range(len(video.times)))
    alone = [model.predict(path) for path in paths]
    assert alone[0] != alone[1]
    assert model.predict(array) == alone[1] and model.predict([paths[0], array]) == alone
    assert model.predict([]) == [] and model.predict([array[:, ::-1]], top=2)[0] != alone[1][:2]
    assert model.explain(array).probabilities == pytest.approx(model.explain(paths[1]).probabilities)
    for wrong in (array[0], array / 255, array[..., :1], array[:0], array[None], [array, array[0]]):
        with pytest.raises(ConfigError, match=r"The array( at place 1 of the videos)? is .* Give the frames of one"):
            model.predict(wrong)
    assert repr(model).endswith(f"run: step {model.step}, classes: {len(model.classes)}>")
    with pytest.raises(ConfigError, match=r"000007\.mp4"):
        model.predict([paths[0], data / BAD])


def test_many_videos_from_the_command_line(data, trained, run, refused, tmp_path):
    listed = [f"{data}/val/00000{i}.mp4" for i in range(4)] + [f"{data}/{BAD}", f"{data}/none.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(listed) + "\n")
    out, features = tmp_path / "pred.jsonl", tmp_path / "feats.npz"
    log = Run(command(trained, tmp_path / "list.txt", f"--out={out}", f"--features={features}")).finish()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in rows] == listed
    assert ["error" in row for row in rows] == [False] * 4 + [True] * 2 and "2 videos could not be decoded" in log
    assert len(rows[0]["top"]) == 5 and rows[0]["top"][0]["class"] in log
    with np.load(features) as arrays:
        assert arrays["video"].tolist() == listed[:4] and arrays["features"].shape == (4, 16)

    complete = out.read_text()
    out.write_text("\n".join(complete.split("\n")[:2]) + '\n{"video": "ha')  # as a killed process leaves it
    assert "already holds the first 2" in run(command(trained, tmp_path / "list.txt", f"--out={out}"))
    assert [json.loads(line)["video"] for line in out.read_text().splitlines()] == listed
    (tmp_path / "other.txt").write_text("\n".join(listed[::-1]) + "\n")
    sentence = refused(command(trained, tmp_path / "other.txt", f"--out={out}"))
    assert "holds predictions of other videos" in sentence
    for notes in ("notes\n", "notes"):
        out.write_text(notes)
        assert "does not hold predictions" in refused(command(trained, tmp_path / "list.txt", f"--out={out}"))
        assert out.read_text() == notes


def test_parts_of_a_list_are_merged_to_the_predictions_of_the_whole(data, trained, run, refused, tmp_path):
    listed = [f"{data}/val/00000{i}.mp4" for i in range(4)] + [f"{data}/{BAD}"]
    (tmp_path / "list.txt").write_text("\n".join(listed) + "\n")
    out, features = tmp_path / "pred.jsonl", tmp_path / "feats.npz"
    flags = command(trained, tmp_path / "list.txt", f"--out={out}", f"--features={features}")
    for part, words in (
        (["--shard=3/3"], "--shard=3/3 must be i/n"),
        (["--shard=0/6", "--merge=true"], "cannot be combined with --merge=true"),
        (["--merge=true"], "There are no parts of"),
        (["--merge=yes"], "--merge=yes must be true or false"),
    ):
        assert words in refused([*flags, *part])
    assert "The 0 predictions of --shard=5/6 are written" in run([*flags, f"--out={tmp_path}/other", "--shard=5/6"])
    run([*flags, "--shard=1/2"])
    assert "missing or incomplete. Run the command with --shard=0/2 first" in refused([*flags, "--merge=true"])
    run([*flags, "--shard=0/2"])
    assert "5 videos, of which 4 could be decoded" in run([*flags, "--merge=true"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in rows] == listed and "error" in rows[-1]
    with np.load(features) as arrays:
        assert arrays["video"].tolist() == listed[:4]
        merged = dict(zip(listed, arrays["features"], strict=False))
    (tmp_path / "pred-00000-of-00002.jsonl").write_text("")
    assert "Run the command with --shard=0/2 first" in refused([*flags, "--merge=true"])
    out.unlink(), features.unlink()
    run(flags)
    assert [json.loads(line)["video"] for line in out.read_text().splitlines()] == listed
    with np.load(features) as arrays:
        for video, row in zip(arrays["video"].tolist(), arrays["features"], strict=True):
            np.testing.assert_allclose(row, merged[video], atol=1e-6)


def test_any_names_of_classes_and_files(data, trained, run, tmp_path):
    names = [name for what, name in HOSTILE_FILES.items() if what not in ("Chinese", "Arabic", "HTML", "a format")][:9]
    workdir, videos = tmp_path / "run", tmp_path / "videos"
    shutil.copytree(trained, workdir)
    about = json.loads((trained / "run.json").read_text())
    about["data"]["classes"] = [*list(HOSTILE.values())[:9], ""]
    write_run_json(workdir, about)
    videos.mkdir()
    for name in names:
        os.link(data / "val" / "000000.mp4", videos / f"{name}.mp4")
    (videos / "bad \x1b[31m.mp4").touch()
    out, features = tmp_path / "\x1b[31m.jsonl", tmp_path / "features.npz"
    log = run(command(workdir, videos, f"--out={out}", f"--features={features}"))
    assert_harmless(log)
    assert r"bad \x1b[31m.mp4" in log and "1 video could not be decoded" in log
    listed = sorted(str(path) for path in videos.iterdir())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in rows] == listed
    for name in (*names, *(best["class"] for row in rows for best in row.get("top", ()))):
        assert printable(name)[:60] in log.replace("\n", "") or len(name) > 80  # a table breaks long names into lines
    with np.load(features) as arrays:
        assert arrays["video"].tolist() == [row["video"] for row in rows if "top" in row]
    log = run(
        command(
            workdir,
            videos / f"{names[-1]}.mp4",
            f"--out={tmp_path}",
            f"--target={HOSTILE['mathematics']}",
            mode="explain",
        )
    )
    assert_harmless(log)
    assert (tmp_path / names[-1] / "relevance.png").exists()


def test_how_unusual_videos_are_read_is_printed_once_by_predictions_and_evaluations(trained, run, tmp_path):
    remarks = {"interlaced": "is interlaced", "hdr": "is HDR (PQ)", "paused": "1 of 8 frames fills", "plain": None}
    parameters = {"interlaced": "tff=1", "hdr": "transfer=smpte2084"}
    for name in remarks:
        times = [0, 40, 80, 120, 9000, 9040, 9080, 9120] if name == "paused" else None
        write(tmp_path / f"{name}.mp4", count=8, options={"x264-params": parameters.get(name, "")}, pts=times)
    (tmp_path / "list.csv").write_text("".join(f"{name}.mp4,0\n" for name in remarks))
    fields = {"data.train": "list.csv", "data.val": "list.csv", "data.classes": "none", "data.flip_swaps": "()"}
    evaluation = arguments(tmp_path, trained, FIELDS | fields | {"eval.batch_size": 8}, mode="eval")
    for flags in (command(trained, tmp_path / "list.csv"), evaluation):
        printed = run(flags)
        for name, words in remarks.items():
            found = [line for line in printed.splitlines() if f"{name}.mp4: " in line]
            assert len(found) == (words is not None) and all(words in line for line in found)


def test_nothing_decoded_is_status_2(data, trained, run, refused, tmp_path):
    """Known rows count: the second command decodes nothing new, but the file holds a prediction."""
    (tmp_path / "bad.mp4").touch()
    for mode, out in (("predict", "rows.jsonl"), ("explain", "pictures")):
        sentence = refused(command(trained, tmp_path / "bad.mp4", f"--out={tmp_path / out}", mode=mode))
        assert "None of the videos of --video=" in sentence and "bad.mp4 could be decoded" in sentence
    assert "error" in json.loads((tmp_path / "rows.jsonl").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4", "rows.jsonl"]
    assert "None of the" in refused(command(trained, tmp_path / "bad.mp4", f"--out={tmp_path / 'rows.jsonl'}"))
    (tmp_path / "list.txt").write_text(f"{data}/val/000000.mp4\nbad.mp4\n")
    flags = command(trained, tmp_path / "list.txt", f"--out={tmp_path / 'both.jsonl'}")
    assert "1 video could not be decoded" in run(flags)
    assert "Predicted 0 videos" in run(flags)


def test_outputs_are_known_before_a_model_is_loaded(trained, refused, tmp_path, monkeypatch):
    error = AssertionError("loaded before the outputs were verified")
    monkeypatch.setattr("vidformers.inference.commands.Predictor", Mock(side_effect=error))
    (tmp_path / "x.mp4").touch()
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for mode, flags, words in (
        ("predict", [f"--out={tmp_path}/folder"], "folder is not a file"),
        ("predict", [f"--out={tmp_path}/x.mp4/y"], "x.mp4 is not a folder"),
        ("predict", [f"--features={tmp_path}/none/y"], "none does not exist"),
        ("explain", [f"--out={tmp_path}/x.mp4"], "x.mp4 is not a folder"),
        ("export", [f"--out={tmp_path}/x.mp4/y"], "x.mp4 is not a folder"),
        ("export", [f"--out={tmp_path}/folder"], "folder exists and is not an empty folder"),
    ):
        arguments = command(trained, tmp_path / "x.mp4", *flags, mode=mode)
        if mode == "export":
            arguments.remove(f"--video={tmp_path / 'x.mp4'}")
        assert words in refused(arguments)
    with output_file(tmp_path / "rows.jsonl"):
        flags = command(trained, tmp_path / "x.mp4", f"--out={tmp_path / 'rows.jsonl'}")
        assert "rows.jsonl is being written by another command" in refused(flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x.mp4"]


def test_a_script_needs_no_main_guard(data, trained, tmp_path):
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


@pytest.fixture(scope="module")
def explained(data, trained, tmp_path_factory):
    """The log of `--mode=explain` for two videos and one that cannot be decoded, and the folder that it wrote.

    The same run at an earlier step is the model beside it.
    """
    folder = tmp_path_factory.mktemp("explained")
    shutil.copytree(trained, folder / "earlier")
    shutil.rmtree(max((folder / "earlier" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)))
    (folder / "list.txt").write_text(f"{data}/val/000000.mp4\n{data}/{BAD}\n{data}/train/000000.mp4\n")
    out = folder / "out"
    flags = [f"--out={out}", "--target=grow", f"--beside={folder / 'earlier'}"]
    return Run(command(trained, folder / "list.txt", *flags, mode="explain")).finish(), out


def test_explanations_from_the_command_line(data, trained, explained, refused):
    log, out = explained
    assert sorted(folder.name for folder in out.iterdir()) == ["0000_000000", "0002_000000"]
    assert "Skipped a video that cannot be decoded" in log and "the relevance for the class grow" in log
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
    rows = cv2.imread(folder / "beside.png")[: 5 * (side + 20), -len(frames) * (side + 4) :].astype(int)
    rollouts, gradients = (np.split(rows, 5)[i : i + 2] for i in (1, 3))
    assert all(0 < np.abs(one - other).mean() < 30 for one, other in (rollouts, gradients))
    for flags, words in (
        (["--target=crawl"], "--target=crawl is not one of the classes slide left"),
        (["--layer=1"], "--layer=1 selects a layer of a temporal encoder, which only VTN has"),
        (["--layer=last"], "--layer=last must be the number of a layer"),
        ([f"--beside={data}"], "holds neither a run, with a run.json, nor an export"),
        ([f"--beside={trained}", "--config.eval.frames=8"], "takes clips of 4 frames of 16 x 16 pixels, but the clips"),
    ):
        assert words in refused(command(trained, data / "val", f"--out={out}", *flags, mode="explain"))


def test_explanations_from_python(data, model, explained):
    explanation = model.explain(data / "val" / "000000.mp4", "grow")
    with np.load(explained[1] / "0000_000000" / "explanation.npz") as arrays:
        for field in ("probabilities", "rollout", "gradient", "heads"):
            expected = arrays[field]
            np.testing.assert_allclose(getattr(explanation, field), expected, atol=1e-4 * expected.max())
    written = sorted(path.name for path in (explained[1] / "0000_000000").iterdir())
    assert sorted([*explanation.files(), "beside.png"]) == written
    with pytest.raises(ConfigError, match=r"000007\.mp4"):
        model.explain(data / BAD)
    with pytest.raises(ConfigError, match="--target=crawl is not one of the classes slide left"):
        model.explain(data / "val" / "000000.mp4", "crawl")


@pytest.mark.quick
def test_mistakes_before_a_run_is_loaded(refused, tmp_path):
    for flags, words in (
        ([f"--video={tmp_path}"], "holds no videos"),
        ([f"--video={tmp_path}/none.mp4", "--out=a.CSV"], "--out=a.CSV would hold lines of JSON"),
        ([], "--mode=predict needs --video"),
    ):
        assert words in refused([*command(tmp_path, "x")[:-1], *flags])
    with pytest.raises(ConfigError, match=r"holds no run: there is no .*run\.json"):
        load(tmp_path)


def test_a_run_without_checkpoints_is_refused(trained, tmp_path):
    shutil.copy(trained / "run.json", tmp_path / "run.json")
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        load(tmp_path)
    run = json.loads((trained / "run.json").read_text())
    del run["config"]["eval"]
    write_run_json(tmp_path, run)
    with pytest.raises(ConfigError, match="has no section 'eval'"):
        load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        load(tmp_path)

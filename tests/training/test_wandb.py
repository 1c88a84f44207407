"""Weights & Biases gets the metrics of a run, and a run that continues is the same run there."""

import json
import sys
from types import SimpleNamespace

import pytest
from command import arguments, one_sentence, render

import main
from vidformers import ConfigError
from vidformers.training.metrics import MetricWriter
from vidformers.training.wandb_run import WandbRun

FIELDS = {"train.total_steps": 3, "train.eval_every_steps": "none", "train.wandb": "videos"}


class Project:
    """A stand-in of the module `wandb`, which keeps runs by their id as the server does."""

    Error = type("Error", (Exception,), {})
    Settings = SimpleNamespace

    def __init__(self):
        self.runs, self.starts, self.error = {}, [], None

    def init(self, **fields):
        if self.error is not None:
            raise self.error
        self.starts.append(fields)
        rows = self.runs.setdefault(fields["id"], [])
        run = SimpleNamespace(step=rows[-1][0] if rows else 0, finish=lambda: None)

        def log(metrics, step):
            run.step = step
            rows.append((step, metrics))

        run.log = log
        return run


@pytest.fixture
def project(monkeypatch):
    project = Project()
    monkeypatch.setitem(sys.modules, "wandb", project)
    return project


@pytest.mark.quick
def test_a_run_that_continues_is_the_same_run_and_sends_no_step_twice(project, tmp_path):
    workdir = tmp_path / "mine"
    workdir.mkdir()
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):  # killed after step 6, continued at step 4
        writer = MetricWriter(workdir, start, WandbRun(workdir, "videos", {"train": {"batch_size": 4}}))
        for step in steps:
            writer.write(step, {"train/loss": 1 / step})
        writer.close()
    first, second = project.starts
    assert first["id"] == second["id"] == json.loads((workdir / "wandb.json").read_text())["id"]
    assert (first["name"], first["project"], first["resume"], first["dir"]) == ("mine", "videos", "allow", str(workdir))
    assert first["config"] == {"train": {"batch_size": 4}}
    sent = {step: metrics for rows in project.runs.values() for step, metrics in rows}
    assert sent == {step: {"train/loss": 1 / step} for step in (2, 4, 6, 8)}


@pytest.mark.quick
def test_a_start_without_a_connection_writes_the_whole_history(project, tmp_path):
    for start, step in ((0, 2), (2, 4)):
        project.runs.clear()  # offline, no earlier rows are known
        writer = MetricWriter(tmp_path, start, WandbRun(tmp_path, "videos", {}))
        writer.write(step, {"train/loss": 0.5})
        writer.close()
    assert [step for rows in project.runs.values() for step, _ in rows] == [2, 4]


@pytest.mark.quick
def test_a_refusal_is_one_sentence(project, tmp_path):
    project.error = project.Error("No API key configured. Use `wandb login` to log in.\nMore.")
    with pytest.raises(ConfigError, match=r"^train\.wandb=videos: .*No API key configured.*WANDB_MODE=offline.*\.$"):
        WandbRun(tmp_path, "videos", {})
    (tmp_path / "wandb.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"wandb\.json is damaged: .* Remove it"):
        WandbRun(tmp_path, "videos", {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("wandb") / "clips")


def test_a_missing_package_is_said_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main.main(["main.py", *arguments(data, tmp_path / "run", FIELDS)]) == 2
    error = one_sentence(capsys.readouterr().err)
    assert "train.wandb=videos needs the package wandb" in error and "pip install wandb" in error
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_package_itself_stores_a_run_offline(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an extra: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):  # the second command finds the run finished
        assert main.main(["main.py", *arguments(data, tmp_path, FIELDS)]) == 0
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    for content in (file.read_bytes() for file in files):
        assert b"train/loss" in content and b"val/top1@2x1" in content and b"batch_size" in content

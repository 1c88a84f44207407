"""A run ends when its metric no longer rises, at the same step however often it is stopped and continued."""

import signal

import pytest
from command import arguments, assert_same_run, one_sentence, render, rows

import main
from vidformers.training import train
from vidformers.training.evaluate import Evaluator
from vidformers.training.loop import TrainingRun
from vidformers.training.patience import Patience

METRIC = "val/top1@1x1"
SCORES = [0.1, 0.4, 0.3, 0.4, 0.2, 0.9]  # the first three evaluations without a rise end with the fifth
FIELDS = {
    "train.total_steps": 12,
    "train.eval_every_steps": 2,
    "train.patience": 3,
    "train.log_every_steps": 4,
    "checkpoint.every_steps": 1000,
    "checkpoint.keep": 1,
}


@pytest.mark.quick
def test_equal_values_are_no_rise_and_the_count_survives_a_restart():
    patience, whole = Patience(METRIC, 3, {}), Patience(METRIC, 3, {})
    for step, score in enumerate(SCORES[:5], start=1):
        patience.update(step, {METRIC: score})
        patience.update(step, {"val/top1@4x3": 1.0})
        whole.update(step, {METRIC: score})
        patience = Patience(METRIC, 3, patience.state)
        assert patience.is_over == whole.is_over == (step == 5)
    assert patience.state == whole.state == {"best": 0.4, "best_step": 2, "count": 3}
    assert not Patience(METRIC, None, patience.state).is_over and not Patience(METRIC, 4, patience.state).is_over


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("patience") / "clips")


@pytest.fixture
def run(data, monkeypatch, capsys):
    """Returns a function that trains with `SCORES` as top-1, and returns (status, stdout, stderr)."""
    evaluate_metrics = Evaluator._metrics

    def metrics(evaluator, *scores):
        found = evaluate_metrics(evaluator, *scores)
        return found | ({METRIC: SCORES[steps[-1] // 2 - 1]} if METRIC in found else {})

    steps = [0]
    evaluate_due = TrainingRun.evaluate_due
    monkeypatch.setattr(TrainingRun, "evaluate_due", lambda run: steps.append(run.step) or evaluate_due(run))
    monkeypatch.setattr(Evaluator, "_metrics", metrics)

    def run(workdir, **fields):
        status = main.main(["main.py", *arguments(data, workdir, FIELDS | fields)])
        return status, *capsys.readouterr()

    return run


def evaluations(workdir):
    return [(row["step"], name[9:]) for row in rows(workdir) for name in row if name.startswith("val/top1@")]


def test_a_run_ends_early_at_the_same_step_however_it_is_stopped(run, tmp_path, monkeypatch):
    status, out, _ = run(tmp_path / "whole")
    assert status == 0
    assert f"Stopped at step 10: {METRIC} has not risen in the last 3 evaluations (train.patience)." in out
    assert "The best value is 0.4000, of step 4." in out
    assert evaluations(tmp_path / "whole") == [*((step, "1x1") for step in (2, 4, 6, 8, 10)), (10, "2x1")]
    assert [row["step"] for row in rows(tmp_path / "whole") if "train/loss" in row] == [4, 8, 10]
    kept = sorted(int(path.name) for path in (tmp_path / "whole" / "checkpoints").glob("[0-9]*"))
    assert kept[-1] == 10 and len(kept) == 2, "the best and the newest"

    # Signals arrive in the evaluations of steps 4 and 10, the last one in that of the protocol of the end.
    run_step, calls = Evaluator.run_step, []

    def stopped(evaluator, *arguments):
        calls.append(evaluator.protocol.name)
        if len(calls) in (3, 12):
            signal.raise_signal(signal.SIGTERM)
        return run_step(evaluator, *arguments)

    monkeypatch.setattr(Evaluator, "run_step", stopped)
    endings = []
    while not endings or endings[-1]:
        endings.append(run(tmp_path / "stopped")[0])
    assert endings == [143, 143, 0] and calls[2] == "1x1" and calls[11] == "2x1"
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", step=10)


def test_a_finished_run_stays_finished_and_more_patience_continues_it(run, tmp_path, monkeypatch):
    assert run(tmp_path)[0] == 0
    before = rows(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(train, "compile_within_memory", None)
        status, out, _ = run(tmp_path)
    assert status == 0 and "Stopped at step 10" in out and rows(tmp_path) == before
    status, out, _ = run(tmp_path, **{"train.patience": 4})
    assert status == 0 and evaluations(tmp_path)[-2:] == [(12, "1x1"), (12, "2x1")]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"train.eval_every_steps": "none"}, "Set train.eval_every_steps or train.eval_every_epochs"),
        ({"train.eval_every_steps": 12}, "of which this run of 12 steps has none"),
        ({"checkpoint.best": "val/top1@2x1"}, "Set checkpoint.best to val/top1@1x1."),
        ({"train.patience": 0}, "train.patience=0 must be at least 1"),
    ],
    ids=str,
)
def test_patience_without_evaluations_on_the_way_is_refused(fields, message, data, tmp_path, capsys):
    assert main.main(["main.py", *arguments(data, tmp_path, FIELDS | fields)]) == 2
    assert message in one_sentence(capsys.readouterr().err)

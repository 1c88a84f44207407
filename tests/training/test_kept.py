"""A run keeps what it has computed when it fails or is stopped, and continues with the evaluations that are due."""

import errno
import json
import signal
from statistics import mean
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from command import arguments, assert_same_run, one_sentence, render, rows

import main
from input_pipeline import DataError, Pipeline
from vidformers.training import reports, train
from vidformers.training.evaluate import EvalProtocol, Evaluator
from vidformers.training.loop import TrainingRun
from vidformers.training.metrics import MetricWriter
from vidformers.training.timing import Throughput

FIELDS = {"train.total_steps": 8, "checkpoint.every_steps": 1000}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("kept") / "clips")


@pytest.fixture
def run(data, tmp_path, capsys):
    """Returns a function that runs the same command again, and returns its exit status and its output."""

    def run(workdir=tmp_path):
        status = main.main(["main.py", *arguments(data, workdir, FIELDS)])
        out, err = capsys.readouterr()
        return status, one_sentence(err) if status == 2 else out

    return run


def before_call(number, function, action):
    """Returns `function`, before whose call `number` `action` is called with the same arguments."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            action(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def fail(*_, **__):
    raise DataError("A video is gone.")


def evaluations(workdir):
    """Returns (step, protocol) of each evaluation in metrics.jsonl."""
    return [(row["step"], name[9:]) for row in rows(workdir) for name in row if name.startswith("val/top1@")]


def assert_answers(workdir, step):
    """Asserts that `answers.jsonl` says which videos the top-1 of the last step counts."""
    answers = [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]
    for protocol in ("1x1", "2x1"):
        mine = [row for row in answers if (row["protocol"], row["step"]) == (protocol, step)]
        assert [row["path"] for row in mine] == [f"val/{number:06}.mp4" for number in range(10)]
        top1 = mean(row["top"][0] == row["labels"][0] for row in mine)
        assert [row[name] for row in rows(workdir) for name in row if name == f"val/top1@{protocol}"][-1] == top1


def test_a_run_that_fails_and_is_stopped_repeats_no_step_and_skips_no_evaluation(run, data, tmp_path, monkeypatch):
    def patched(owner, name, change, workdir=tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, change(getattr(owner, name)))
            return run(workdir)

    # A step fails. It has deleted the arrays of the state before, so there is nothing to save.
    def failing_step(compile_step):
        def compile_failing(setup):
            step = compile_step(setup)
            return before_call(2, step, lambda *arguments: step(*arguments) and fail())

        return compile_failing

    status, message = patched(train, "compile_within_memory", failing_step)
    assert status == 2 and message.endswith("No checkpoint is saved, so the same command starts from step 0.\n")
    # The data of step 4 fail. The state after step 3 is saved.
    status, message = patched(Throughput, "next_batch", lambda next_batch: before_call(4, next_batch, fail))
    assert message == "vidformers: A video is gone. The same command continues from the checkpoint of step 3.\n"
    # The row of step 4 cannot be written. It is written at the next start.
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    status, message = patched(MetricWriter, "write", lambda _: Mock(side_effect=full))
    assert "metrics.jsonl cannot be read or written: No space left on device." in message
    assert message.endswith("The same command continues from the checkpoint of step 4.\n")
    # A signal arrives within the first evaluation, which has two batches.
    status, out = patched(
        Evaluator, "run_step", lambda run_step: before_call(1, run_step, lambda *_: signal.raise_signal(signal.SIGTERM))
    )
    assert status == 128 + signal.SIGTERM and not evaluations(tmp_path)
    assert out.splitlines()[-1].startswith("Stopped in an evaluation at step 4 of 8, which is saved")
    # A validation video is damaged when the last step is done. The evaluation of step 4 is made first.
    video = next(data.glob("val/*.mp4"))
    content = video.read_bytes()
    status, message = patched(
        TrainingRun, "save", lambda save: before_call(1, save, lambda _: video.write_bytes(content[:500]))
    )
    video.write_bytes(content)
    assert str(video) in message and message.endswith("The same command continues from the checkpoint of step 8.\n")
    assert evaluations(tmp_path) == [(4, "1x1")]
    # The evaluations of the last step are made, without a step of training. A picture fails.
    monkeypatch.setattr(train, "compile_within_memory", None)
    status, out = patched(reports, "draw_curves", lambda _: fail)
    monkeypatch.undo()
    assert status == 0 and "curves.png was not drawn (DataError: A video is gone)" in out
    assert evaluations(tmp_path) == [(4, "1x1"), (8, "1x1"), (8, "2x1")]
    assert_answers(tmp_path, step=8)

    passes, val_batches = [], Pipeline.val_batches
    monkeypatch.setattr(
        Pipeline,
        "val_batches",
        lambda self, **fields: passes.append(fields["passes"]) or val_batches(self, **fields),
    )
    assert run(tmp_path / "reference")[0] == 0
    assert_same_run(tmp_path, tmp_path / "reference", step=8)
    assert passes == [2, 1], "the workers of periodic evaluations are kept"


@pytest.mark.quick
@pytest.mark.parametrize("eval_every", [None, 4, 5, 20])
@pytest.mark.parametrize("clips", [1, 2])
def test_the_workers_of_an_evaluation_decode_for_all_evaluations_that_are_left(eval_every, clips):
    periodic = EvalProtocol(clips=1, crops=1)
    setup = SimpleNamespace(
        total_steps=14, eval_every=eval_every, periodic_protocol=periodic, protocol=EvalProtocol(clips=clips, crops=1)
    )
    due = [TrainingRun._protocols_after(SimpleNamespace(setup=setup), step) for step in range(1, 15)]
    for step, protocols in enumerate(due, start=1):
        for protocol in protocols:
            left = TrainingRun._evaluations_left(
                SimpleNamespace(setup=setup, step=step, is_finished=step == 14), protocol
            )
            assert left == sum(protocol in later for later in due[step - 1 :])

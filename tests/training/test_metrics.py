"""Rows of `metrics.jsonl` are written whole, and a file that cannot be written or read is named."""

import contextlib
import json
import os
import resource

import pytest

from vidformers.errors import ConfigError
from vidformers.training.metrics import MetricWriter, _curves, draw_curves, read_metrics
from vidformers.training.reports import _log_best, _log_data_wait


@pytest.mark.quick
def test_a_row_that_the_disk_refuses_is_named_and_leaves_no_part(tmp_path):
    path, metrics = tmp_path / "metrics.jsonl", dict.fromkeys(map(str, range(20)), 1.0)
    with contextlib.closing(MetricWriter(tmp_path, 0)) as writer:
        writer.write(1, metrics)
        size = path.stat().st_size
        for limit, file in ((size + 10, "metrics.jsonl"), (3 * size, "events.out.tfevents")):
            before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            try:
                with pytest.raises(OSError) as raised:
                    writer.write(2, metrics)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert raised.value.filename == str(tmp_path / file)
            assert path.read_bytes() == before or file != "metrics.jsonl"
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.quick
def test_any_numbers_and_names_of_metrics_become_events_and_curves(tmp_path):
    odd = {"step": 2**63 - 1, "time": 1e308, "val/loss": 10**300, "train/loss": -1e300, "\ud800/loss": 5e-324, "": 0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(odd) + "\n" + json.dumps({"step": 1}) + "\n")
    MetricWriter(tmp_path, 2**63).close()
    draw_curves(tmp_path)
    assert len(read_metrics(tmp_path)) == 2


@pytest.mark.quick
@pytest.mark.parametrize("share", ["mAP", "top1"])
def test_a_protocol_has_one_colour_in_both_axes_which_show_the_same_steps(share):
    rows = [{"step": step, "train/loss": 0.5, "train/lr": 0.1} for step in range(1, 7)]
    rows += [{"step": step, f"val/{share}@1x1": 0.2, "val/loss@1x1": 0.6} for step in (2, 4, 6)]
    rows.append({"step": 6, f"val/{share}@4x3": 0.3, "val/loss@4x3": 0.5})
    figure = _curves(rows, {name: name for name in sorted({name for row in rows for name in row})})
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    loss, shares = colours
    assert loss.keys() == {"train/loss", "val/loss@1x1", "val/loss@4x3"} and len(set(loss.values())) == 3
    assert shares == {f"val/{share}@{views}": loss[f"val/loss@{views}"] for views in ("1x1", "4x3")}
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


@pytest.mark.quick
def test_metrics_in_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read: It is a pipe"):
        MetricWriter(tmp_path, 0)


@pytest.mark.quick
def test_an_earlier_evaluation_that_was_better_is_named_if_its_checkpoint_is_kept(tmp_path, capsys):
    top1 = {10: 0.5, 20: 0.75, 30: 0.75, 40: 0.25}
    rows = [{"step": step, "val/top1@1x1": value} for step, value in top1.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _log_best(tmp_path, read_metrics(tmp_path), "val/top1@1x1")
    assert not capsys.readouterr().out
    for step in (30, 40):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    _log_best(tmp_path, read_metrics(tmp_path), "val/top1@1x1")
    assert "val/top1@1x1 was highest at step 30: 75.00%." in capsys.readouterr().out
    _log_best(tmp_path, read_metrics(tmp_path), "val/loss@1x1")
    assert not capsys.readouterr().out


@pytest.mark.quick
@pytest.mark.parametrize(("source", "advice"), [("csv", "of the time. python -m"), ("shards", "of the time. More")])
def test_a_training_that_waited_for_data_most_of_the_time_says_what_helps(capsys, source, advice):
    for waits, expected in (([0.9, 0.05], ""), ([0.9, 0.7], f"Training waited for data in 80% {advice}")):
        rows = [{"step": step, "train/data_wait": wait} for step, wait in enumerate(waits)]
        _log_data_wait([*rows, {"step": 2}], source)
        out = capsys.readouterr().out
        assert expected in out and bool(out) == bool(expected)

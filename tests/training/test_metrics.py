"""Rows of `metrics.jsonl` are written whole, and a file that cannot be written or read is named."""

import contextlib
import json
import os
import resource

import pytest

from vidformers.errors import ConfigError
from vidformers.training.metrics import MetricWriter, draw_curves, read_metrics


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
def test_metrics_in_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read: It is a pipe"):
        MetricWriter(tmp_path, 0)

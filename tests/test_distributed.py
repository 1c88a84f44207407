"""Processes that a scheduler starts are one run: the same batches, losses and checkpoints as of one process."""

import contextlib
import json
import socket

import numpy as np
import pytest
from command import Run, arguments, render, rows

FIELDS = {"data.repeats": 2, "data.randaugment": 2, "data.brightness": 0.0, "train.mixup": 0.8, "train.cutmix": 1.0,
          "model.dropout": 0.1, "train.batch_size": 16, "train.total_steps": 6, "data.max_bad_fraction": 0.2}


def free_job():
    """The number of a job whose coordinator will find its port free: JAX computes one from the other."""
    for job in np.random.default_rng().permutation(2**12):
        with socket.socket() as port, contextlib.suppress(OSError):
            port.bind(("localhost", 65535 - 2**12 + 1 + int(job)))
            return int(job)
    raise OSError("no port is free")


def scheduled(arguments, count, devices):
    """Runs of as many processes, with the variables that SLURM sets."""
    job = free_job()
    runs = [Run([*arguments, "--distributed=true"], devices, environment={
        "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}) for number in range(count)]
    return runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("distributed") / "clips")


def test_two_processes_of_four_devices_are_one_of_eight(data, tmp_path):
    Run(arguments(data, tmp_path / "one", FIELDS), devices=8).finish()
    first, second = scheduled(arguments(data, tmp_path / "two", FIELDS), 2, devices=4)
    said = [run.end() for run in (first, second)]
    assert [code for code, _, _ in said] == [0, 0], said
    assert "train 6/6" in said[0][1] and "train 6/6" not in said[1][1], "one of them speaks"
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row.keys() for row in one] == [row.keys() for row in two] and len(one) > 3
    for expected, actual in zip(one, two):
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, err_msg=name)
    Run(arguments(data, tmp_path / "two", FIELDS, mode="eval")).finish()
    again = json.loads((tmp_path / "two" / "eval_2x1.json").read_text())
    assert again["val/top1@2x1"] == two[-1]["val/top1@2x1"], "what two wrote, one reads"

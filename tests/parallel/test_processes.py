"""Processes that a scheduler starts are one run: the same batches, losses and checkpoints as of one process."""

import contextlib
import gzip
import json
import re
import signal
import socket
import time

import numpy as np
import pytest
from command import Run, arguments, render, rows

from vidformers.errors import ConfigError
from vidformers.parallel.processes import initialize

FIELDS = {
    "data.repeats": 2,
    "data.randaugment": 2,
    "data.brightness": 0.0,
    "train.mixup": 0.8,
    "train.cutmix": 1.0,
    "model.dropout": 0.1,
    "train.batch_size": 16,
    "train.total_steps": 6,
    "data.max_bad_fraction": 0.2,
}


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
    runs = [
        Run(
            [*arguments, "--distributed=true"],
            devices,
            environment={
                "SLURM_JOB_ID": str(job),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(count),
                "SLURM_PROCID": str(number),
                "SLURM_LOCALID": str(number),
            },
        )
        for number in range(count)
    ]
    return runs


def addressed(arguments, count, devices):
    """Runs of as many processes, told where they are."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    return [
        Run(
            [
                *arguments,
                "--distributed=true",
                f"--coordinator=localhost:{port}",
                f"--processes={count}",
                f"--process={number}",
            ],
            devices,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("distributed") / "clips")


def test_two_processes_of_four_devices_are_one_of_eight(data, tmp_path):
    traced = FIELDS | {"train.profile_steps": "(3,3)"}
    assert "Step 3 is traced" in Run(arguments(data, tmp_path / "one", traced), devices=8).finish()
    first, second = scheduled(arguments(data, tmp_path / "two", traced), 2, devices=4)
    said = [run.end() for run in (first, second)]
    assert [code for code, _, _ in said] == [0, 0], said
    assert "train 6/6" in said[0][1] and "train 6/6" not in said[1][1], "one of them speaks"
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row.keys() for row in one] == [row.keys() for row in two] and len(one) > 3
    for expected, actual in zip(one, two, strict=True):
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, err_msg=name)
    for folder in ("one/profile", "two/profile/process0", "two/profile/process1"):
        (trace,) = (tmp_path / folder).glob("plugins/profile/*/perfetto_trace.json.gz")
        assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    Run(arguments(data, tmp_path / "two", FIELDS, mode="eval")).finish()
    again = json.loads((tmp_path / "two" / "eval_2x1.json").read_text())
    assert again["val/top1@2x1"] == two[-1]["val/top1@2x1"], "what two wrote, one reads"


# Without mixing, which sends rows from device to device: on CPUs Gloo's collective permutes hang once in some hundred.
LONG = FIELDS | {
    "train.mixup": 0.0,
    "train.cutmix": 0.0,
    "train.total_steps": 100000,
    "train.log_every_steps": 1,
    "train.eval_every_steps": "none",
    "checkpoint.every_steps": 5,
}


def logged(workdir, step):
    return lambda: (workdir / "metrics.jsonl").is_file() and any(row["step"] >= step for row in rows(workdir))


def kill_one(data, workdir, victim):
    """Starts two, kills one, and sees the other end."""
    pair = addressed(arguments(data, workdir, LONG), 2, devices=4)
    pair[0].until(logged(workdir, 12))
    pair[victim].kill()
    begun = time.monotonic()
    code, _, said = pair[1 - victim].end()
    assert time.monotonic() - begun < 60 and code == 1, said
    sentences = [line for line in said.splitlines() if line.startswith("vidformers: ")]
    assert len(sentences) == 1 and "continue" in sentences[0], said


@pytest.mark.parametrize(
    "given, sentence",
    [
        (dict(coordinator="localhost:1"), "are given together or not at all"),
        (dict(coordinator="1234", processes=2, process=0), "--coordinator=1234 must be HOST:PORT"),
        (dict(coordinator="localhost:x", processes=2, process=0), "--coordinator=localhost:x must be HOST:PORT"),
        (dict(coordinator="localhost:1", processes=2, process=2), "--process=2 must be at least 0 and below"),
    ],
    ids=str,
)
def test_addresses_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        initialize(**given)


def test_when_the_first_is_killed_the_other_ends_with_a_sentence(data, tmp_path):
    kill_one(data, tmp_path, 0)


def test_when_another_is_killed_the_first_ends_both_resume_and_a_signal_to_one_stops_both(data, tmp_path):
    kill_one(data, tmp_path, 1)
    saved = max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir() if folder.name.isdigit())
    pair = addressed(arguments(data, tmp_path, LONG), 2, devices=4)
    pair[0].until(logged(tmp_path, saved + 8))
    pair[1].send(signal.SIGTERM)
    (first, spoken, _), (second, silent, _) = (run.end() for run in pair)
    assert first == second == 143
    assert f"Continues {tmp_path} at step {saved}" in spoken and "Continues" not in silent
    stopped = re.search(r"Stopped at step (\d+) of 100000, which is saved", spoken)
    assert stopped and "Stopped" not in silent, "one of them speaks"
    assert (tmp_path / "checkpoints" / stopped[1]).is_dir()

"""A run of several processes computes what a run of one process computes, and ends if one of them dies."""

import contextlib
import gzip
import json
import re
import signal
import socket
import time

import numpy as np
import pytest
from command import Run, arguments, flip_a_bit, render, rows

import main
from vidformers.errors import ConfigError
from vidformers.parallel.processes import initialise

FIELDS = {
    "data.repeats": 2,
    "data.randaugment": 2,
    "data.brightness": 0.0,
    "train.mixup": 0.8,
    "train.cutmix": 1.0,
    "model.dropout": 0.1,
    "train.batch_size": 16,
    "train.total_steps": 4,
    "data.max_bad_fraction": 0.2,
}


def free_slurm_job():
    """Returns the number of a SLURM job whose coordinator port, which JAX computes from the number, is free."""
    for job in np.random.default_rng().permutation(2**12):
        with socket.socket() as port, contextlib.suppress(OSError):
            port.bind(("localhost", 65535 - 2**12 + 1 + int(job)))
            return int(job)
    raise OSError("no port is free")


def start_under_slurm(arguments, count, devices):
    """Starts `count` processes with the environment variables that SLURM sets."""
    job = free_slurm_job()
    return [
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


def start_with_addresses(arguments, count, devices, **options):
    """Starts `count` processes with the flags that name the coordinator."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    flags = ["--distributed=true", f"--coordinator=localhost:{port}", f"--processes={count}"]
    return [Run([*arguments, *flags, f"--process={number}"], devices, **options) for number in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("processes") / "clips")


def test_two_processes_of_four_devices_compute_what_one_of_eight_computes(data, tmp_path):
    traced = FIELDS | {"train.profile_steps": "(3,3)"}
    one = Run(arguments(data, tmp_path / "one", traced), devices=8)
    pair = start_under_slurm(arguments(data, tmp_path / "two", traced), 2, devices=4)
    assert "Step 3 is traced" in one.finish()
    ends = [run.wait() for run in pair]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert "train 4/4" in ends[0][1] and "train 4/4" not in ends[1][1], "process 0 alone logs"
    one_rows, two_rows = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row.keys() for row in one_rows] == [row.keys() for row in two_rows] and len(one_rows) > 3
    for expected, actual in zip(one_rows, two_rows, strict=True):
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, err_msg=name)
    for folder in ("one/profile", "two/profile/process0", "two/profile/process1"):
        (trace,) = (tmp_path / folder).glob("plugins/profile/*/perfetto_trace.json.gz")
        assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    answers = [
        [json.loads(line) for line in (tmp_path / run / "answers.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for expected, actual in zip(*answers, strict=True):
        p, q = ([entry.pop("probability") for entry in (*row.pop("top"), *row["labels"])] for row in (expected, actual))
        assert p == pytest.approx(q, rel=1e-4) and expected == actual and "error" not in actual
    # One process evaluates the checkpoint that two have written.
    assert main.main(["main.py", *arguments(data, tmp_path / "two", FIELDS, mode="eval")]) == 0
    evaluated = json.loads((tmp_path / "two" / "eval_2x1.json").read_text())
    assert evaluated["val/top1@2x1"] == two_rows[-1]["val/top1@2x1"]


# Without mixing, which sends rows between devices: on CPUs, Gloo's collective permutes hang once in a few hundred runs.
ENDLESS = {
    "train.total_steps": 100000,
    "train.log_every_steps": 1,
    "train.eval_every_steps": "none",
    "checkpoint.every_steps": 5,
}


def is_logged(workdir, step):
    """Returns a function that tells whether metrics of `step` or later have been logged."""
    return lambda: (workdir / "metrics.jsonl").is_file() and any(row["step"] >= step for row in rows(workdir))


def kill_one_of_two(data, workdir, victim, **options):
    """Starts two processes, kills one during training, and asserts that the other ends with one message."""
    pair = start_with_addresses(arguments(data, workdir, ENDLESS), 2, devices=4, **options)
    seventh_step = is_logged(workdir, 7)
    # Saves run in the background, so the first may end many steps later on a busy machine.
    pair[0].wait_until(lambda: seventh_step() and sum(x.name.isdigit() for x in workdir.glob("checkpoints/*")) >= 2)
    pair[victim].kill()
    start = time.monotonic()
    status, _, err = pair[1 - victim].wait()
    assert time.monotonic() - start < 60 and status == 1, err
    messages = [line for line in err.splitlines() if line.startswith("vidformers: ")]
    assert len(messages) == 1 and "continue" in messages[0], err


@pytest.mark.quick
@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(coordinator="localhost:1"), "are given together or not at all"),
        (dict(coordinator="1234", processes=2, process=0), "--coordinator=1234 must be HOST:PORT"),
        (dict(coordinator="localhost:x", processes=2, process=0), "--coordinator=localhost:x must be HOST:PORT"),
        (dict(coordinator="localhost:1", processes=2, process=2), "--process=2 must be at least 0 and below"),
    ],
    ids=str,
)
def test_wrong_addresses_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        initialise(**flags)


def test_when_process_0_is_killed_the_other_ends_with_a_message(data, tmp_path):
    kill_one_of_two(data, tmp_path, victim=0)


def test_when_process_1_is_killed_the_other_ends_both_resume_and_a_signal_to_one_stops_both(data, tmp_path):
    kill_one_of_two(data, tmp_path, victim=1, patches=["vidformers.parallel.processes._HEARTBEAT_SECONDS = 1"])
    steps = (int(folder.name) for folder in (tmp_path / "checkpoints").iterdir() if folder.name.isdigit())
    saved, newest = sorted(steps)[-2:]
    files = [path for path in (tmp_path / "checkpoints" / str(newest)).rglob("*") if path.is_file()]
    flip_a_bit(max(files, key=lambda path: path.stat().st_size))  # only one of the processes reads it
    # The killed run may have logged many steps after its last checkpoint.
    logged = max(row["step"] for row in rows(tmp_path))
    pair = start_with_addresses(arguments(data, tmp_path, ENDLESS), 2, devices=4)
    pair[0].wait_until(is_logged(tmp_path, logged + 3))
    pair[1].send(signal.SIGTERM)
    (status_0, out_0, _), (status_1, out_1, _) = (run.wait() for run in pair)
    assert status_0 == status_1 == 143
    assert f"Continues {tmp_path} at step {saved}" in out_0 and "Continues" not in out_1
    assert f"It is renamed to {newest}.damaged" in out_0 and "damaged" not in out_1
    stopped = re.search(r"Stopped at step (\d+) of 100000, which is saved", out_0)
    assert stopped and "Stopped" not in out_1, "process 0 alone logs"
    assert (tmp_path / "checkpoints" / stopped[1]).is_dir()
    # A signal to one process within the first of two batches of an evaluation stops both after the second.
    signal_in_evaluation = (
        "vidformers.training.evaluate.put_batch = (lambda put, left: lambda *batch: "
        "[__import__('signal').raise_signal(left.pop()) for _ in left[:__import__('jax').process_index()]] and None "
        "or put(*batch))(vidformers.training.evaluate.put_batch, [15])"
    )
    command = arguments(data, tmp_path, ENDLESS, mode="eval")
    ends = [run.wait() for run in start_with_addresses(command, 2, devices=4, patches=[signal_in_evaluation])]
    assert [status for status, _, _ in ends] == [143, 143], ends
    assert "The evaluation is not finished" in ends[0][1] and not (tmp_path / "eval_2x1.json").exists()

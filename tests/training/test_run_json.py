"""The description of a run: no damage is believed, and each is refused in a sentence."""

import json
import random
from contextlib import suppress

import pytest

from configs.loading import load
from vidformers.errors import ConfigError
from vidformers.training.run_json import read_run_json
from vidformers.training.workdir import differences_from_stored_run, last_saved_step, note_saved, write_run_json

RUN = {"config": {"model": {}, "data": {}, "checkpoint": {"every_steps": 10}}, "data": {"classes": ["a"]}}


@pytest.mark.quick
def test_no_flipped_bit_in_a_description_is_believed(tmp_path):
    path, rng = tmp_path / "run.json", random.Random(0)
    run = RUN | {"attention": {"2x8": "einsum"}, "total_steps": 12, "data": {"classes": ["slide", "走る", "$x$"]}}
    write_run_json(tmp_path, run)
    note_saved(tmp_path, 4)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with suppress(ConfigError):  # else the flip is in a space or in the name of the checksum
            found = read_run_json(tmp_path)
            assert {name: found.get(name) for name in run} == run and last_saved_step(tmp_path) == 4
    path.write_bytes(content.replace(b"slide", b"glide"))
    with pytest.raises(
        ConfigError, match=r"run\.json is damaged: it differs from its checksum\. If you have edited it"
    ):
        read_run_json(tmp_path)
    edited = json.loads(path.read_text())
    del edited["checksum"]
    path.write_text(json.dumps(edited))
    assert read_run_json(tmp_path)["data"]["classes"][0] == "glide"


@pytest.mark.quick
def test_a_description_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "run.json"
    damaged = (
        b"",
        b"\xff{}",
        b"\0" * 100,
        b"[]",
        b"[" * 100_000,
        b'{"config": [], "data": {}}',
        b'{"config": {"model": 1, "data": {}}, "data": {}}',
        b'{"config": {"model": {"name": []}, "data": {}}, "data": {}}',
        b'{"config": {"model": {}, "data": {}, "eval": 3}, "data": {}}',
        b'{"config": {"model": {}, "data": {}}, "data": "text"}',
    )
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"run\.json is damaged"):
            read_run_json(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"run\.json cannot be read: Is a directory"):
        read_run_json(tmp_path)


@pytest.mark.quick
def test_weights_and_excluded_videos_of_a_run_that_has_begun_cannot_be_changed(tmp_path):
    config = load("configs/vit_b16.py").to_dict()
    data = {"train": "digest", "train_list": "train.csv"}
    write_run_json(tmp_path, {"config": config, "data": data})
    other = config | {"init": config["init"] | {"weights": "other.npz"}}
    (change,) = differences_from_stored_run(tmp_path, {"config": other, "data": data})
    assert change.startswith("Continues with init.weights='other.npz'")  # nothing is saved, so the run starts again
    note_saved(tmp_path, 10)
    (change,) = differences_from_stored_run(tmp_path, {"config": other, "data": data})
    assert change.startswith("init.weights='other.npz' has no effect")
    write_run_json(tmp_path, {"config": other, "data": data})
    assert read_run_json(tmp_path)["config"]["init"]["weights"] is None
    other = config | {"data": config["data"] | {"exclude": "bad.txt"}}
    with pytest.raises(ConfigError, match=r"a run with data\.exclude=None, .* larger data\.max_bad_fraction"):
        differences_from_stored_run(tmp_path, {"config": other, "data": data | {"train": "without"}})

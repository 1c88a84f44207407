"""Checkpoints of Flax and Orbax: their parameters are found, and damaged or hostile ones are refused in a sentence."""

import io
import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from weights import SHAPE, arrays_of, fitted, nested

from vidformers.errors import ConfigError
from vidformers.pretrained import orbax_file
from vidformers.pretrained.files import open_file


def tree_of(arrays):
    """Returns the arrays as a tree of dictionaries, along the slashes of their names."""
    return nested({tuple(name.split("/")): array for name, array in arrays.items()})


def write_msgpack(path, tree):
    path.write_bytes(serialization.msgpack_serialize(tree))
    return str(path)


def write_orbax(path, tree, **options):
    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(path.absolute(), tree)
    return str(path)


@pytest.fixture
def in_process(monkeypatch):
    """Reads checkpoints of Orbax in this process, without its limits, which saves the start of another."""

    def run(command, **_):
        out = io.BytesIO()
        status = orbax_file.main(command[-1], out)
        return SimpleNamespace(returncode=status, stdout=out.getvalue())

    monkeypatch.setattr(orbax_file.subprocess, "run", run)
    monkeypatch.setattr(orbax_file, "_limit_process", lambda _: None)


@pytest.mark.quick
@pytest.mark.parametrize(
    "writer, around",
    [
        (write_msgpack, lambda tree: {"optimizer": {"target": tree, "state": {"step": 3}}, "global_step": 3}),
        (write_msgpack, lambda tree: {"params": tree, "opt_state": {"0": jax.tree.map(np.zeros_like, tree)}}),
        # Averaged parameters are preferred.
        (write_msgpack, lambda tree: {"params": jax.tree.map(np.zeros_like, tree), "ema_params": tree}),
        (write_orbax, lambda tree: {"params": tree, "opt_state": jax.tree.map(np.zeros_like, tree), "global_step": 3}),
        (write_orbax, lambda tree: tree),
    ],
)
def test_checkpoints_of_flax_and_orbax_hold_the_parameters_of_a_run(writer, around, tmp_path, in_process):
    arrays = {name: array[..., :2] for name, array in arrays_of("scenic_vivit").items()}
    file = open_file(writer(tmp_path / "checkpoint", around(tree_of(arrays))))
    assert file.arrays.keys() == arrays.keys() and len(file.sha256) == 64
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.arrays[name], array)
    assert bool(file.not_read) == (len(around({})) > 0)


@pytest.mark.quick
def test_a_vivit_of_scenic_starts_from_its_checkpoint(tmp_path):
    name = "joint"
    options = SHAPE | dict(frames=8, patch_frames=2, positions="joint", gelu="tanh")
    write_msgpack(tmp_path / "checkpoint", {"optimizer": {"target": tree_of(arrays_of("scenic_vivit"))}})
    pretrained = fitted(str(tmp_path), name, **options)
    assert pretrained.layout == "ViViT of Scenic" and pretrained.counts["loaded"] == len(pretrained.origins)
    with pytest.raises(ConfigError, match="does not say over how many frames its 64 positions extend"):
        fitted(str(tmp_path), name, **options | dict(frames=16))
    with pytest.raises(ConfigError, match=r"normalised with model\.mean=\(0\.5, 0\.5, 0\.5\)"):
        fitted(str(tmp_path), name, dict(allow=()), **options | dict(mean=(0.45,) * 3, std=(0.225,) * 3))
    (tmp_path / "config.json").write_text('{"num_frames": 8}')
    remarks = fitted(str(tmp_path), name, **options | dict(frames=16, gelu="exact")).remarks
    assert any("tanh approximation of GELU" in remark for remark in remarks)


class Ran:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.quick
@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"\x81\xa6params\x81\xa1a\xa4text", "holds 'a', a str, which is not an array"),
        (b"\x81\xa6params\x80", "holds no tree of parameters"),
        (b"\x82\xa6params\x81\xa1a", "is damaged, or not a file of Flax"),
        # An array of Python objects, whose bytes would be addresses.
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", bytes(8))))}), "is damaged, or not a"),
        (msgpack.packb({"a": msgpack.ExtType(1, pickle.dumps(Ran()))}), "is damaged, or not a file of Flax"),
    ],
)
def test_a_file_of_flax_without_parameters_is_refused_and_never_run(content, sentence, tmp_path, capfd):
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        open_file(str(tmp_path))
    assert "ran" not in capfd.readouterr().out


@pytest.mark.quick
def test_a_damaged_checkpoint_of_orbax_is_refused_in_a_sentence(tmp_path, in_process):
    folder = write_orbax(tmp_path / "checkpoint", {"a": np.ones(4)})
    for file in Path(folder).rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is damaged, or not a checkpoint of Orbax") as error:
        open_file(folder)
    assert "\n" not in str(error.value)


@pytest.mark.quick
@pytest.mark.parametrize("function", ["_limit_process", "parameters", "_pack"])
def test_an_error_of_the_program_is_no_damage_of_a_checkpoint_of_orbax(tmp_path, in_process, monkeypatch, function):
    def fail(*_):
        raise TypeError("a fault of the program")

    folder = write_orbax(tmp_path / "checkpoint", {"a": np.ones(4)})
    monkeypatch.setattr(orbax_file, function, fail)
    with pytest.raises(TypeError, match="a fault of the program"):
        open_file(folder)


@pytest.mark.quick
def test_a_checkpoint_of_orbax_that_is_not_what_it_says_is_refused(tmp_path, in_process, monkeypatch):
    folder = Path(write_orbax(tmp_path / "checkpoint", {"a": np.ones(4)}, use_ocdbt=False))
    path = folder / "a" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [2**40], "chunks": [2**40]}))
    with pytest.raises(ConfigError, match="would become arrays of 8796093022208 bytes"):
        open_file(str(folder))
    os.mkfifo(folder / "pipe")
    with pytest.raises(ConfigError, match="pipe cannot be read: It is a pipe or a device"):
        open_file(str(folder))
    (folder / "pipe").unlink()
    failed = SimpleNamespace(returncode=1, stderr=b"TypeError: a fault of the program")
    monkeypatch.setattr(orbax_file.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        open_file(str(folder))
    for status, sentence in ((-6, "ended with status -6"), (-24, "took too long")):
        monkeypatch.setattr(orbax_file.subprocess, "run", lambda *_, s=status, **__: SimpleNamespace(returncode=s))
        with pytest.raises(ConfigError, match=f"{re.escape(str(folder))} is damaged.*{sentence}"):
            open_file(str(folder))


def test_checkpoints_of_orbax_are_read_in_a_process_of_their_own(tmp_path):
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": jax.numpy.ones(3, jax.numpy.bfloat16)}}
    arrays = open_file(write_orbax(tmp_path / "checkpoint", tree)).arrays
    assert list(arrays) == ["a", "b/c"] and arrays["b/c"].dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(arrays["a"], tree["a"])

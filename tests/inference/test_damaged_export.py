"""A damaged or hostile export ends in a sentence: in vidformers, and in the run.py of the export."""

import hashlib
import json
import os
from importlib import util

import numpy as np
import pytest
import safetensors.numpy
from house import ROOT

from vidformers.errors import ConfigError
from vidformers.inference.predictor import load_export
from vidformers.pretrained.files import open_file

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "model, sentence",
    [
        (None, "cannot be read: It is a pipe"),
        ([], "holds a list as 'model' instead of an object"),
        ({}, "has no field 'model.name'"),
        ({"name": 3}, "holds a number as 'model.name' instead of a text"),
        ({"name": "nonsense" * 9999}, "must be one of vit"),
        ({"name": "vit", "width": "wide"}, "model.width='wide' must be"),
        ({"name": "vit", "a" * 9999: 1}, "is not a field of the model 'vit'"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(model, sentence, tmp_path):
    path = tmp_path / "config.json"
    if model is None:
        os.mkfifo(path)
    else:
        path.write_text(json.dumps({"model": model}))
    with pytest.raises(ConfigError) as error:
        load_export(tmp_path, {"init": {}})
    assert sentence in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 2000


def test_weights_that_are_not_those_of_the_export_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, path)
    config = {"format": "vidformers", "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(open_file(str(tmp_path)).arrays) == ["x"]
    path.write_bytes(path.read_bytes()[:-1] + b"\x40")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not the file that was exported"):
        open_file(str(tmp_path))


@pytest.fixture
def script(tmp_path):
    """Returns the run.py of an export as a module."""
    spec = util.spec_from_file_location("run", ROOT / "vidformers" / "inference" / "exported" / "run.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = tmp_path
    return module


def stopped(capfd, function, *args):
    """Returns the sentence with which a function of run.py ends the program."""
    with pytest.raises(SystemExit) as stop:
        function(*args)
    assert stop.value.code == 2
    return capfd.readouterr().err


def test_run_py_names_the_file_that_is_damaged(script, tmp_path, capfd):
    assert "config.json is missing" in stopped(capfd, script.load)
    config = {"id2label": {}, "inputs": {}, "views": {"average": "logits"}, "sha256": {"model.safetensors": "0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    os.mkfifo(tmp_path / "model.safetensors")
    assert "model.safetensors is missing" in stopped(capfd, script.load)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(bytes(8) + b"{}")
    assert "model.safetensors is not the file that was exported" in stopped(capfd, script.load)
    for text, reason in (
        ("[" * 9999, "RecursionError"),
        ("[]", "TypeError"),
        (json.dumps(config | {"sha256": None}), "AttributeError"),
        (json.dumps(config | {"views": {}}), "KeyError"),
    ):
        (tmp_path / "config.json").write_text(text)
        assert f"holds a damaged export (config.json: {reason}" in stopped(capfd, script.main, [])


def test_run_py_calls_no_export_damaged_for_an_error_of_the_program(script, tmp_path, monkeypatch):
    def fail(error):
        raise error

    contents = {"model.safetensors": bytes(8).replace(b"\0", b"\2", 1) + b"{}", "model.stablehlo": b"program"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    config = {"id2label": {}, "inputs": {}, "views": {"average": "logits"}, "sha256": digests}
    for name, content in (contents | {"config.json": json.dumps(config).encode()}).items():
        (tmp_path / name).write_bytes(content)
    # A missing package, and a function of JAX that takes other arguments
    for error in (ModuleNotFoundError("No module named 'flatbuffers'"), TypeError("a fault of the program")):
        monkeypatch.setattr(script.jax.export, "deserialize", lambda _, error=error: fail(error))
        with pytest.raises(type(error), match=str(error)):
            script.main([])


def test_run_py_names_an_input_that_is_no_array(script, tmp_path, capfd):
    spec = {"axes": "t y x c", "shape": [1, 2, 2, 3], "type": "uint8"}
    path = tmp_path / "video.npy"
    os.mkfifo(path)
    assert "is not a file" in stopped(capfd, script.read_input, path, "video", spec)
    path.unlink()
    np.save(path, np.zeros((2, 1, 2, 2, 3), np.uint8))
    assert script.read_input(path, "video", spec).shape == (2, 1, 2, 2, 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is not an array of numpy.save" in stopped(capfd, script.read_input, path, "video", spec)
    for content in (b"", b"a video, not an array"):
        path.write_bytes(content)
        message = stopped(capfd, script.read_input, path, "video", spec)
        assert "is not an array of numpy.save" in message and "pickle" not in message
    np.save(path, np.zeros((2, 2, 3), np.uint8))
    assert "but video must be uint8 of shape (1, 2, 2, 3)" in stopped(capfd, script.read_input, path, "video", spec)

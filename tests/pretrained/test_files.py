"""Files of weights are found in files, folders and the cache of Hugging Face, and damaged ones are refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from vidformers.errors import ConfigError
from vidformers.pretrained.files import open_file


@pytest.mark.quick
@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is not a file of weights"),
        (b"text that is long enough", "is not a file of weights"),
        (b'\x10\0\0\0\0\0\0\0{"a":', "is damaged, or not a file of safetensors"),
        # Its length, 41,345, has the first bytes of a tree of Flax.
        (b'\x81\xa1\0\0\0\0\0\0{"a":"b"}', "is damaged, or not a file of safetensors"),
        (b"PK\x03\x04garbage", "is damaged"),
        # An archive whose directory names a file in bytes that are not UTF-8.
        (
            b"PK\x01\x02\x14\0\x14\0\0\x08"
            + bytes(18)
            + b"\x01"
            + bytes(17)
            + b"\xe3PK\5\6"
            + bytes(4)
            + b"\1\0\1\0/\0\0\0"
            + bytes(6),
            "is damaged",
        ),
        (b"\x80\x02}q\x00.", "not a file of torch.save"),
    ],
)
def test_damaged_files_are_refused(content, sentence, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        open_file(str(path))


def test_missing_and_ambiguous_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a file, nor a folder, nor OWNER/NAME"):
        open_file(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="holds no file of weights"):
        open_file(str(tmp_path))
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=np.zeros(2))
    with pytest.raises(ConfigError, match=r"several files of weights, a\.npz and b\.npz"):
        open_file(str(tmp_path))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ConfigError, match="holds pickled objects"):
        open_file(str(tmp_path / "objects.npz"))


def test_a_repository_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, snapshot / "model.safetensors")
    file = open_file("owner/name")
    assert file.revision == commit and list(file.arrays) == ["x"]
    with pytest.raises(ConfigError, match=r"owner/other is neither a path on this machine nor in .* reached"):
        open_file("owner/other")


def test_the_files_that_an_index_names_are_read(tmp_path):
    for number in (1, 2):
        safetensors.numpy.save_file({f"x{number}": np.full(3, number, np.float32)}, tmp_path / f"p{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x1": "p1.safetensors", "x2": "p2.safetensors"}}))
    assert {name: array[0] for name, array in open_file(str(tmp_path)).arrays.items()} == {"x1": 1, "x2": 2}
    (tmp_path / "p2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names p2\.safetensors, which is missing"):
        open_file(str(tmp_path))

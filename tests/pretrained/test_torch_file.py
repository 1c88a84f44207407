"""Files of torch.save are read exactly and never run code. goldens/make_torch_files.py writes the two checkpoints."""

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vidformers.errors import ConfigError
from vidformers.pretrained import torch_file

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.quick
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_tensor_of_a_checkpoint_is_read(form):
    arrays, others = torch_file.read(GOLDENS / f"{form}.pth")
    whole = np.arange(60, dtype=np.float32)
    expected = {
        "plain": whole[:6].reshape(2, 3),
        "turned": whole[6:18].reshape(3, 4).T,
        "strided": whole[20:].reshape(4, 10)[:, ::3],
        "half": np.arange(4) / 4,
        "brain": np.arange(4) / 4,
        "double": np.arange(3) / 7,
        "count": np.array(12),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "parameter": np.ones((2, 2)),
    }
    assert list(arrays) == list(expected), "the prefixes of wrappers are removed"
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
        assert arrays[name].shape == array.shape
    assert arrays["half"].dtype == np.float16 and arrays["double"].dtype == np.float64
    assert {"args: argparse.Namespace", "epoch: a int", "optimizer: a dict"} <= set(others)


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def archive(path, content, data=(), compression=zipfile.ZIP_STORED):
    """Writes a zip file in the form of torch.save with this pickle as its content."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        for key, value in data:
            file.writestr(f"archive/data/{key}", value)
    return path


def tensor(key="0", count=4, offset=0, shape=(2, 2), strides=(2, 1), storage="FloatStorage"):
    """Returns the pickle of {'weight': a tensor of this description}."""

    def put(value):
        return pickle.dumps(value, 2)[2:-1]

    parts = [
        b"\x80\x02}",
        put("weight"),
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        b"(",
        put("storage"),
        f"ctorch\n{storage}\n".encode(),
        put(key),
        put("cpu"),
        put(count),
        b"tQ",
        put(offset),
        put(shape),
        put(strides),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
        b"tR",
        b"s.",
    ]
    return b"".join(parts)


def test_a_tensor_is_read_from_a_pickle_written_by_hand(tmp_path):
    path = archive(tmp_path / "a.pth", tensor(), [("0", np.arange(4, dtype=np.float32).tobytes())])
    np.testing.assert_array_equal(torch_file.read(path)[0]["weight"], [[0, 1], [2, 3]])


def test_a_tensor_beside_the_state_dict_is_not_read_as_a_weight(tmp_path):
    inner, accuracy = tensor()[2:-1], tensor().replace(b"weight", b"best_a")[2:-1]
    beside = b"\x80\x02" + accuracy + pickle.dumps("state_dict", 2)[2:-1] + inner + b"s."
    path = archive(tmp_path / "a.pth", beside, [("0", np.arange(4, dtype=np.float32).tobytes())])
    arrays, others = torch_file.read(path)
    assert list(arrays) == ["weight"] and others == ("best_a: a tensor",)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(offset=1), "does not lie within its storage"),
        (dict(offset=-1), "a number of a tensor is -1"),
        (dict(strides=(2, 2)), "does not lie within"),
        (dict(strides=(-1, 1)), "a number of a tensor is -1"),
        (dict(shape=(1 << 40, 1 << 40), strides=(0, 0)), "does not lie within"),
        (dict(shape=(2, 2), strides=(1,)), "not tuples of equal length"),
        (dict(shape=(True, 2)), "number of a tensor is True"),
        (dict(count=1 << 60), "would become arrays of 4611686018427387904 bytes"),
        (dict(count=8), "is truncated within 'weight'"),
        (dict(key="9"), "is damaged"),
        (dict(storage="QInt8Storage"), "a storage is of the type torch.QInt8Storage"),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, change, sentence):
    path = archive(tmp_path / "a.pth", tensor(**change), [("0", bytes(16))])
    with pytest.raises(ConfigError, match=sentence):
        torch_file.read(path)


def test_no_code_of_a_file_is_run(tmp_path):
    harm, weights = tmp_path / "harm", [("0", bytes(16))]
    state = tensor()[2:-1]
    beside = (
        b"\x80\x02}"
        + pickle.dumps("evil", 2)[2:-1]
        + pickle.dumps(Runs(harm), 2)[2:-1]
        + b"s"
        + pickle.dumps("state_dict", 2)[2:-1]
        + state
        + b"s."
    )
    arrays, others = torch_file.read(archive(tmp_path / "a.pth", beside, weights))
    assert arrays["weight"].shape == (2, 2) and not harm.exists()
    assert any(other.startswith("evil: ") and other.endswith(".system") for other in others)
    inside = b"\x80\x02" + state + pickle.dumps("evil", 2)[2:-1] + pickle.dumps(Runs(harm), 2)[2:-1] + b"s."
    with pytest.raises(ConfigError, match=r"holds 'evil', (posix|nt)\.system, which is not a tensor"):
        torch_file.read(archive(tmp_path / "b.pth", inside, weights))
    legacy = tmp_path / "c.pth"
    legacy.write_bytes(pickle.dumps(Runs(harm), 2))
    with pytest.raises(ConfigError, match="not a file of torch.save"):
        torch_file.read(legacy)
    assert not harm.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "importlib import_module",
        "numpy load",
        "torch.storage _load_from_bytes",
        "vidformers.pretrained.torch_file _tensor",
    ],
)
def test_functions_that_a_file_names_are_inert(tmp_path, name):
    module, function = name.split()
    call = f"c{module}\n{function}\n".encode() + pickle.dumps(("1 + 1",), 2)[2:-1] + b"R."
    with pytest.raises(ConfigError, match=f"holds {module}.{function} instead of a dictionary"):
        torch_file.read(archive(tmp_path / "a.pth", b"\x80\x02" + call))


def test_a_file_cannot_change_the_functions_that_it_may_call(tmp_path):
    change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + pickle.dumps({"_function": 1}, 2)[2:-1] + b"b."
    with pytest.raises(ConfigError, match="its pickle changes a function"):
        torch_file.read(archive(tmp_path / "a.pth", change))
    assert collections.OrderedDict(a=1)["a"] == 1


def test_files_that_would_fill_the_memory_are_refused(tmp_path):
    huge = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
    with pytest.raises(ConfigError, match="holds no dictionary of tensors"):
        torch_file.read(archive(tmp_path / "a.pth", huge))
    with pytest.raises(ConfigError, match="its entries are compressed"):
        torch_file.read(archive(tmp_path / "b.pth", tensor(), [("0", bytes(16))], zipfile.ZIP_DEFLATED))
    with pytest.raises(ConfigError, match="a list instead of a dictionary"):
        torch_file.read(archive(tmp_path / "c.pth", b"\x80\x02" + b"]" * 50000 + b"a" * 49999 + b"."))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_truncated_and_damaged_files_are_refused_or_read(form, tmp_path):
    """Reading damaged files gives arrays or a ConfigError, and no other exception."""
    good = (GOLDENS / f"{form}.pth").read_bytes()
    expected = torch_file.read(GOLDENS / f"{form}.pth")[0]
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"
    refused = 0
    for end in rng.integers(0, len(good) - 1, 60):
        path.write_bytes(good[:end])
        with pytest.raises(ConfigError, match="a.pth"):
            torch_file.read(path)
    for _ in range(200):
        data = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            torch_file.read(path)
        except ConfigError as error:
            refused += 1
            assert "a.pth" in str(error)
    assert refused > 50 and len(expected) == 10


def test_files_that_are_not_checkpoints_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        torch_file.read(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="a zip file that torch.save did not write"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr("text", "text")
        torch_file.read(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="instead of a dictionary of tensors"):
        torch_file.read(archive(tmp_path / "b.pth", [1, 2]))
    with pytest.raises(ConfigError, match="holds no dictionary of tensors"):
        torch_file.read(archive(tmp_path / "c.pth", {"a": 1}))
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    (tmp_path / "d.pth").write_bytes(buffer.getvalue())
    with pytest.raises(ConfigError, match="not a file of torch.save"):
        torch_file.read(tmp_path / "d.pth")

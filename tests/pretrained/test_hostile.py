"""Hostile files of weights and configs end in a sentence, and cost no more than reading them."""

import io
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from benchmarks.campaign import files
from vidformers.errors import ConfigError
from vidformers.pretrained import archive, flax_file, limits, unpickler
from vidformers.pretrained.files import open_file
from vidformers.pretrained.tensors import Inert, Malformed, Storage, Tensor

pytestmark = pytest.mark.quick

FLOATS = Storage("0", np.dtype(np.float32), 12)
GROWING = b")" + b"2\x86" * 200  # tuples of the same tuple twice: printing or hashing the last takes for ever


COPY = b"ccollections\nOrderedDict\nh\0\x85R"  # of the dictionary that is the first in the memo


def refused(path, content=None):
    """Returns the sentence that refuses a file, after writing its content."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        open_file(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 2000
    return str(error.value)


def archived(pickled: bytes, **data: bytes) -> bytes:
    """Returns a file of torch.save with this pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for key, numbers in data.items():
            file.writestr(f"a/data/{key}", numbers)
    return content.getvalue()


@pytest.mark.parametrize(
    "pickled, sentence",
    [
        (b"}" + GROWING + b"Ns", "holds no dictionary of tensors"),
        (b"\x8f(" + GROWING + b"\x90", "holds a set instead of a dictionary"),
        (GROWING + b"}\x93", "names an object by something else than a name"),
        (b"ctorch._utils\n_rebuild_tensor\n(NK\0" + GROWING + b")tR", "a tensor has no storage"),
        (b"(" + b"".join(b"K%cN" % i for i in range(99)) + b"d\x940" + COPY * 5000, "opcodes"),
        (b"\x8b" + struct.pack("<I", 200) + b"\x7f" * 200, "a number of more than 1,024 bits"),
        (b"B" + struct.pack("<I", 2**32 - 1), "is damaged"),
        (b"\x8e" + struct.pack("<Q", 2**62), "is damaged"),
        (b"cposix\nsystem\n)}\x92", "holds posix.system instead of a dictionary"),
        (b"]}b", "its pickle changes a list"),
        (b"(Na", "is damaged"),
        (b"\x82\1", "the opcode EXT1"),
        (b"ctorch\nSize\nN\x85R", "makes a tuple of None"),
        (b"ccollections\nOrderedDict\n]]a\x85R", "items that are not pairs"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "calls a function of 4 arguments with 0"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n(NNNtR", "calls a function of 4 arguments with 3"),
        (b"ctorch._utils\n_rebuild_parameter\n)R", "calls a function of 1 arguments with 0"),
    ],
)
def test_every_opcode_of_a_pickle_has_a_bounded_result(pickled, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(unpickler, "_MOST_OPCODES", 100_000)
    assert sentence in refused(tmp_path / "a.pth", archived(b"\x80\x04" + pickled + b"."))


def test_a_pickle_chooses_no_numbers_as_keys_since_they_could_all_have_one_hash():
    same_hash = [k * (2**61 - 1) for k in range(1, 50)]
    others = [1, -1, 0.5, None, True, b"a", (), ("a",)]
    pickled = pickle.dumps({key: "value" for key in [*same_hash, *others]}, 2)
    content, _ = unpickler.read(pickled)
    assert all(type(key) in (str, Inert) for key in content)
    loader = unpickler.Unpickler(io.BytesIO(b"}" + b"p%d\n" % same_hash[0] + b"g%d\n." % same_hash[0]), 99)
    assert loader.load() == {} and [type(key) for key in loader._memo] == [str]


def test_dictionaries_that_hold_each_other_many_times_are_searched_once(tmp_path):
    level = b"".join(b"M" + struct.pack("<H", i) + b"h\0" for i in range(2000))
    nested = b"".join(b"}(" + level + b"uq\0" for _ in range(3))
    refused(tmp_path / "a.pth", archived(b"\x80\x02}q\0" + nested + b"."))


@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (2**40,), (0,)),
        (0, (3, 4), (2**40, 1)),
        (0, (0, 2**40, 2**40), (1, 1, 1)),
        (-1, (1,), (1,)),
        (13, (0,), (1,)),
        (0, (1,) * 17, (1,) * 17),
        (0, (3, 4), (4,)),
        (0, [3, 4], (4, 1)),
        (0, (3.0, 4), (4, 1)),
        (2**70, (1,), (1,)),
    ],
)
def test_tensors_are_checked_where_they_are_made(offset, shape, strides):
    with pytest.raises((Malformed, ValueError)):
        Tensor(FLOATS, np.dtype(np.float32), offset, shape, strides).array(bytes(48))


def test_a_pickle_cannot_change_a_tensor(tmp_path):
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000NK\4tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0K\4\x85K\1\x85"
    changed = b"\x80\x02" + tensor + b"tR" + pickle.dumps({"shape": (2**40,)}, 2)[2:-1] + b"b."
    assert "changes a tensor" in refused(tmp_path / "a.pth", archived(changed, **{"0": bytes(16)}))


def test_float8_is_read_or_refused(tmp_path):
    numbers = np.array([0.5, 1, 2, 448], ml_dtypes.float8_e4m3fn)

    def state(name):
        storage = b"(X\7\0\0\0storagectorch.storage\nUntypedStorage\nX\1\0\0\x000NK\4tQ"
        tensor = (
            b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + b"K\0K\4\x85K\1\x85\x89N" + b"ctorch\n" + name + b"\ntR"
        )
        return archived(b"\x80\x02}X\1\0\0\0w" + tensor + b"s.", **{"0": numbers.tobytes()})

    (tmp_path / "a.pth").write_bytes(state(b"float8_e4m3fn"))
    np.testing.assert_array_equal(open_file(str(tmp_path / "a.pth")).arrays["w"], numbers)
    assert "of the type torch.float8_future" in refused(tmp_path / "b.pth", state(b"float8_future"))
    header = {"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    write_safetensors(tmp_path / "c.safetensors", header, numbers.tobytes())
    np.testing.assert_array_equal(open_file(str(tmp_path / "c.safetensors")).arrays["w"], numbers)
    for name in ("F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E5M2", "F8_E8M0"):
        header["w"]["dtype"] = name
        write_safetensors(tmp_path / "c.safetensors", header, bytes((1, 2, 3, 4)))
        assert open_file(str(tmp_path / "c.safetensors")).arrays["w"].dtype.itemsize == 1
    for name in ("F8_FUTURE", "F4", "F6_E2M3"):
        header["w"]["dtype"] = name
        write_safetensors(tmp_path / "d.safetensors", header, numbers.tobytes())
        assert f"'w' has the type {name!r}, which is not read" in refused(tmp_path / "d.safetensors")


def write_safetensors(path, header, numbers=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


@pytest.mark.parametrize(
    "header, sentence",
    [
        (b'{"a":' * 9999, "nested more than 100 levels deep"),
        (b'{"a": 3}', "holds a number as 'a' instead of an object"),
        (b'{"__metadata__": [1]}', "holds a list as '__metadata__' instead of an object"),
        ({"a": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}}, "'a' has 99 axes"),
        ({"a" * 9999: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "a name of 9999 characters"),
        ({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, "is damaged"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-1, 4]}}, "is damaged"),
        ({f"a{i}": {} for i in range(10_001)}, "it holds 10001 arrays"),
    ],
)
def test_headers_of_safetensors_are_bounded(header, sentence, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", header, bytes(4))
    assert sentence in refused(tmp_path / "a.safetensors")


def test_a_header_longer_than_its_file_is_refused(tmp_path):
    assert "its header has 1000 bytes, and the file 20" in refused(
        tmp_path / "a.safetensors", struct.pack("<Q", 1000) + b'{"a": 1}   }'
    )


def npy(header: str, version: int = 1, numbers: bytes = bytes(16)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + numbers


@pytest.mark.parametrize(
    "member, sentence",
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}"), "do not fit its header"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 16777216)}"), "do not fit its header"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}"), "a shape of other values than sizes"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"), "holds objects or records"),
        (npy("{'descr': '(2,2)f4', 'fortran_order': False, 'shape': (1,)}"), "holds objects or records"),
        (npy("(" * 9000), "is damaged"),
        (npy("{[1]: 2}"), "has a header that is invalid"),
        (npy("{1: 2, 'descr': '<f4'}"), "has a header that is invalid"),
        (npy("{'descr': '<f4'}", 3), "has version (3, 0)"),
        (npy("{'descr': '<f4'}" + " " * 20_000), "is damaged"),
    ],
)
def test_the_header_of_an_array_is_checked_before_its_numbers_are_read(member, sentence, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", member)
    assert sentence in refused(tmp_path / "a.npz")


def test_archives_that_are_larger_than_they_look_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_FREE_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.float32))
    assert "would become arrays of 400128 bytes" in refused(tmp_path / "a.npz")
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000NM\0\4tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0M\0\4\x85K\1\x85tR"
    shared = b"".join(pickle.dumps(f"w{i}", 2)[2:-1] + tensor for i in range(20))
    path = tmp_path / "a.pth"
    assert "would become arrays of 81920 bytes" in refused(
        path, archived(b"\x80\x02}(" + shared + b"u.", **{"0": bytes(4096)})
    )
    monkeypatch.setattr(limits, "_FREE_BYTES", 10**6)
    assert len(open_file(str(path)).arrays) == 20


def with_directory(content: bytes, offset: int, number: bytes, repeat: int = 1) -> bytes:
    """Returns a zip archive in which a field of its first entry is another number, or the directory is repeated."""
    place, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    directory = bytearray(content[place:end])
    directory[offset : offset + len(number)] = number
    tail = bytearray(content[end:])
    struct.pack_into("<I", tail, 12, len(directory) * repeat)
    return content[:place] + bytes(directory) * repeat + bytes(tail)


@pytest.mark.parametrize(
    "offset, number, repeat, sentence",
    [
        (8, b"\1\0", 1, "is encrypted"),
        (10, b"\x0e\0", 1, "compressed by a method that NumPy never uses"),
        (20, b"\1\0\0\0", 1, "has two sizes"),
        (20, b"\xf0\xff\xff\xff\xf0\xff\xff\xff", 1, "larger than the file, or overlap"),
        (6, b"", 2, "two of its entries have the same name"),
    ],
)
def test_the_directory_of_an_archive_is_checked(offset, number, repeat, sentence, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(4))
    content = with_directory((tmp_path / "a.npz").read_bytes(), offset, number, repeat)
    assert sentence in refused(tmp_path / "a.npz", content)


def test_a_large_directory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_LARGEST_DIRECTORY", 100)
    np.savez(tmp_path / "a.npz", **{f"x{i}": np.zeros(4) for i in range(9)})
    assert "its directory has" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"\x81\xa1a" + b"\xdd\0\x0f\0\0" * 500, "is damaged"),
        (b"\x81\xa1a\xdd\0\0\x10\0" + b"\x90" * 4096, "more than 1000 values"),
        (b"\x81\xa1a\x9f" + (b"\xdc\0\x50" + b"\x90" * 80) * 15, "more than 1000 values"),
        (b"\x81\xa1a" + (b"\xdc\3\x20" + b"\xa2ab" * 799) * 20 + b"\x90", "more than 1000 values"),  # none has an end
        (b"\x81\xa1a\xde\x07\xd0" + b"".join(msgpack.packb(str(i)) + b"\1" for i in range(2000)), "more than 1000"),
        (msgpack.packb({"a": {1: 2}}), "int is not allowed for map key"),
        (
            msgpack.packb({"a": {msgpack.ExtType(2, msgpack.packb((1.0, 2.0))): 1}}),
            "complex is not allowed for map key",
        ),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**40, 2**40), "float32", b"")))}), "is damaged"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((4, "float32", bytes(16))))}), "not a list of numbers"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((4,), "f4,f4", bytes(32))))}), "of the type f4,f4"),
        (msgpack.packb({"a" * 200: {"b" * 400: msgpack.ExtType(9, b"")}}), "a name of more than 500 characters"),
    ],
)
def test_values_of_msgpack_are_counted_and_typed(content, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(flax_file, "_MOST_VALUES", 1000)
    assert sentence in refused(tmp_path / "checkpoint", content)


def test_files_of_flax_are_read_as_flax_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    small = np.arange(4).astype(ml_dtypes.bfloat16)
    tree = {"a": {"large": np.arange(60, dtype=np.float32).reshape(3, 20), "small": small}, "b": np.float16(3)}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    arrays = open_file(str(tmp_path)).arrays
    assert list(arrays) == ["a/large", "a/small", "b"]
    for array, expected in zip(arrays.values(), (tree["a"]["large"], small, np.float16(3)), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", ["model.safetensors", "a.npz", "a.pth", "checkpoint", "model.safetensors.index.json"])
def test_a_pipe_is_no_file_of_weights(name, tmp_path):
    os.mkfifo(tmp_path / name)
    assert "pipe or a device, not a regular file" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "a.npz", "checkpoint_3"])
def test_a_folder_with_the_name_of_a_file_is_named(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"{name} is a folder, and not a checkpoint of Orbax"):
        open_file(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [None, b"[1]", b"{" * 9999, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_config_that_cannot_be_read_is_refused(name, content, tmp_path):
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        open_file(str(tmp_path))


@pytest.mark.parametrize(
    "weight_map, sentence",
    [
        ([], "holds a list as 'weight_map' instead of an object"),
        ({"x": 3}, "holds a number as 'weight_map.x' instead of a text"),
        ({"x": "../a.safetensors"}, "which is not the name of a file beside it"),
        ({"x": ".."}, "lists '..', which is not the name of a file beside it"),
        ({"x": ""}, "lists '', which is not the name of a file beside it"),
        ({"x": "a.safetensors", "y": "b.safetensors"}, "several files that hold the array 'x'"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "lists 1001 files"),
        ({"x": "a" * 400}, "which is missing"),
    ],
)
def test_an_index_lists_files_beside_it(weight_map, sentence, tmp_path):
    for name in "ab":
        safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sentence in refused(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("number", [n for n in range(len(files.SETS)) if files.case_set(n) != "orbax"])
def test_a_case_of_the_campaign_depends_on_its_number_alone_and_ends_in_a_sentence(number, tmp_path):
    results = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        result = files.run_case(number, folder)
        assert not result["failed"], result
        made = sorted(path for path in folder.rglob("*") if path.is_file())
        results.append([path.read_bytes() for path in made] + [result["outcome"]])
    assert results[0] == results[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [1e300, -np.inf, np.nan])
def test_numbers_that_are_not_finite_in_float32_are_refused_without_a_warning(number, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([number]))
    assert "'x' holds numbers that are not finite" in refused(tmp_path / "a.npz")

"""Reads files of `torch.save` without PyTorch and without running code that they refer to.

Both formats are read: the zip archive, and the stream of pickles from before PyTorch 1.6. An untrusted file can hold
wrong numbers, but it cannot run code, and cannot take much more time or memory than reading it takes.
"""

import io
import os
import zipfile

import numpy as np

from input_pipeline.json_files import open_regular
from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained import unpickler
from vidformers.pretrained.archive import BadArchive, open_archive
from vidformers.pretrained.damage import DAMAGE_ERRORS
from vidformers.pretrained.limits import LONGEST_NAME, TooMuch, check_bytes, check_count
from vidformers.pretrained.tensors import Malformed, Tensor, described, shown

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of the old form
_LEGACY_PROTOCOL = 1001

# The keys under which training code stores weights, averaged weights first. A file can have several of them.
_STATES = (
    "model_ema",
    "ema",
    "state_dict_ema",
    "state_dict",
    "model_state",
    "model_state_dict",
    "model",
    "teacher",
    "module",
    "net",
)
_PREFIXES = ("module.", "model.", "backbone.")
_DEEPEST_STATE = 8  # dictionaries around a state dict
_MOST_OTHERS = 100  # descriptions of other objects


def read(path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the state dict in a file.

    If the file has several, averaged weights are preferred. Prefixes that wrappers add to every name are removed.

    Returns:
        (name -> array, descriptions of the other objects in the file: their keys and types)
    Raises:
        ConfigError: the file is not a file of torch.save, is damaged or hostile, or has no state dict.
    """
    try:
        with open_regular(path) as file:
            return _read(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (Malformed, BadArchive, TooMuch) as error:
        raise ConfigError(f"{path} cannot be read as weights of PyTorch: {error}.") from None
    except DAMAGE_ERRORS as error:
        raise ConfigError(
            f"{path} is damaged, or not a file of torch.save ({type(error).__name__}: {one_line(error)})."
        ) from None


def _read(file):
    if not zipfile.is_zipfile(file):
        return _gather(*_read_legacy(file), os.fstat(file.fileno()).st_size)
    with open_archive(file, (zipfile.ZIP_STORED,)) as archive:
        return _gather(*_read_zip(archive), os.fstat(file.fileno()).st_size)


def _read_zip(archive):
    """Returns the unpickled object, and a function that reads a storage."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Malformed("it is a zip file that torch.save did not write")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise Malformed("its numbers are big-endian")
    content, _ = unpickler.read(archive.read(names[0]))

    def read_storage(storage):
        return archive.read(f"{folder}data/{storage.key}")

    return content, read_storage


def _read_legacy(file):
    """Returns the unpickled object, and a function that reads a storage."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    pickles = unpickler.Unpickler(file, size)
    if pickles.load() != _LEGACY_MAGIC or pickles.load() != _LEGACY_PROTOCOL:
        raise Malformed("it is not a file of torch.save")
    pickles.load()  # sizes of C types on the machine that wrote it
    content = pickles.load()
    keys, offsets = pickles.load(), {}
    if type(keys) is not list:
        raise Malformed("it has no list of storages")
    for key in keys:
        storage = pickles.storages.get(key if type(key) is str else shown(key))
        if storage is None:
            raise Malformed(f"no tensor refers to the storage {shown(key)}")
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise Malformed(f"the storage {storage.key} holds {count} numbers, not {storage.count}")
        offsets[storage.key] = file.tell()
        if storage.nbytes > size:
            raise Malformed(f"it is truncated within the storage {storage.key}")
        file.seek(storage.nbytes, io.SEEK_CUR)

    def read_storage(storage):
        if storage.key not in offsets:
            raise Malformed(f"the storage {storage.key} is missing")
        file.seek(offsets[storage.key])
        return file.read(storage.nbytes)

    return content, read_storage


def _gather(content, read_storage, size):
    """Returns the arrays of the state dict in a file, and descriptions of the other objects in the file.

    Args:
        content: the unpickled object.
        read_storage: storage -> its bytes.
        size: the bytes of the file.
    """
    state, others = _find(content)
    tensors = {}
    for name, value in state.items():
        if type(name) is not str or len(name) > LONGEST_NAME:
            raise Malformed(f"a name in its state dict is {shown(name)}")
        if value is None or isinstance(value, (int, float)):
            continue  # a counter
        if not isinstance(value, Tensor):
            raise Malformed(f"its state dict holds {name!r}, {described(value)}, which is not a tensor")
        tensors[name] = value
    check_count(len(tensors))
    # Tensors can share a storage, and storages of a hostile file can share bytes.
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    for nbytes in (tensor.nbytes for tensor in tensors.values()), (storage.nbytes for storage in storages.values()):
        check_bytes(sum(nbytes), size)
    buffers, arrays = {}, {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in buffers:
            buffers[storage.key] = read_storage(storage)
            if len(buffers[storage.key]) < storage.nbytes:
                raise Malformed(f"it is truncated within {name!r}")
        arrays[name] = tensor.array(buffers[storage.key])
    prefix = ""
    while common := next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in arrays)), None):
        prefix += common
    return {name.removeprefix(prefix): array for name, array in arrays.items()}, others


def _find(content, where="", depth=0):
    """Returns the innermost state dict, and descriptions of all else in `content`. `where` precedes their keys."""
    if not isinstance(content, dict):
        raise Malformed(f"it holds {described(content)} instead of a dictionary of tensors")
    if depth > _DEEPEST_STATE:
        raise Malformed(f"its state dict lies within more than {_DEEPEST_STATE} dictionaries")
    known: dict[tuple[int, int], bool] = {}
    inner = [key for key in (*_STATES, *content) if _holds_tensors(content.get(key), known)]
    # Training code can store another tensor, such as the best accuracy, next to the weights.
    if any(isinstance(value, Tensor) for value in content.values()) and not set(inner) & set(_STATES):
        return content, ()
    if not inner:
        raise Malformed("it holds no dictionary of tensors")
    key = inner[0]
    state, others = _find(content[key], f"{where}{_key(key)}.", depth + 1)
    rest = [f"{where}{_key(other)}: {described(value)}" for other, value in content.items() if other != key]
    if len(rest) > _MOST_OTHERS:
        rest = [*rest[:_MOST_OTHERS], f"{where or 'the file'}: {len(rest) - _MOST_OTHERS} further objects"]
    return state, (*rest, *others)


def _holds_tensors(content, known: dict, depth: int = 3) -> bool:
    """Returns whether a value is a dictionary that holds a tensor, or a dictionary within it does, up to a depth.

    `known` keeps the answers. Many dictionaries of a hostile file can hold the same one.
    """
    if not isinstance(content, dict) or depth == 0:
        return False
    key = (id(content), depth)
    if key not in known:
        known[key] = any(
            isinstance(value, Tensor) or _holds_tensors(value, known, depth - 1) for value in content.values()
        )
    return known[key]


def _key(key) -> str:
    return key if type(key) is str and len(key) <= LONGEST_NAME else shown(key)

"""Reads files of `torch.save` without PyTorch and without running code that they refer to.

Both formats are read: the zip archive, and the stream of pickles from before PyTorch 1.6. `_ALLOWED` lists the globals
that a pickle may use. Every other global becomes an inert object that holds only its name. An untrusted file can hold
wrong numbers, but it cannot run code.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from vidformers.errors import ConfigError

_DTYPES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "DoubleStorage": np.float64,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

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


class Malformed(ValueError):
    """The content of the file is invalid. The text says why."""


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage, checked to lie within it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """Replaces an object that is not needed. It accepts every operation of a pickle, and does nothing.

    Every global of a pickle that is not allowed gets its own subclass, which has its `name`.
    """

    name = ""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass

    def add(self, value):
        pass


class _Dict(dict):
    """A dictionary that ignores the attributes that a pickle sets."""

    def __setstate__(self, state):
        pass


class _Function:
    """A function that a pickle may call but cannot change."""

    __slots__ = ("_function",)
    _function: Callable

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args):
        return self._function(*args)

    def __setattr__(self, name, value):
        raise Malformed("it changes a function")

    def __setstate__(self, state):
        raise Malformed("it changes a function")


def _natural(value):
    """Returns `value` if it is an int of at least 0, not a bool or of another subclass of int."""
    if type(value) is not int or value < 0:
        raise Malformed(f"a number of a tensor is {value!r}")
    return value


def _tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise Malformed("a tensor has no storage")
    offset, shape, strides = _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, strides))
    count = math.prod(shape)
    # Shape and strides of unequal lengths are refused below.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    if (
        len(shape) != len(strides)
        or len(shape) > 16
        or count > storage.count
        or (count and last >= storage.count)
        or offset > storage.count
    ):
        raise Malformed(f"a tensor of shape {shape} does not lie within its storage of {storage.count}")
    return _Tensor(storage, offset, shape, strides)


def _parameter(data, *_):
    if not isinstance(data, _Tensor):
        raise Malformed("a parameter holds no tensor")
    return data


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("collections", "OrderedDict"): lambda items=(): _Dict(items),
    ("collections", "Counter"): lambda items=(): _Dict(items),
    ("collections", "defaultdict"): lambda factory=None, items=(): _Dict(items),
}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, numbers, strings and tensors, and inert objects for everything else."""

    def __init__(self, file, storages):
        super().__init__(file, encoding="utf-8")
        self._storages = storages

    def find_class(self, module, name):
        if (module, name) in _ALLOWED:
            return _Function(_ALLOWED[module, name])
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        return type("_Inert", (_Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid):
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise Malformed("it refers to an object that is not a storage")
        _, dtype, key, _, count, *view = pid
        if view and view[0] is not None:
            raise Malformed("it holds views of storages, which a state dict never holds")
        if not isinstance(dtype, np.dtype):
            raise Malformed(f"a storage is of the type {getattr(dtype, 'name', dtype)}")
        storage = _Storage(str(key), dtype, _natural(count))
        if self._storages.setdefault(storage.key, storage) != storage:
            raise Malformed(f"the storage {key} has two descriptions")
        return storage


def _unpickle(file, storages, size):
    """Returns the next object of a stream of `size` bytes."""
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):  # the unpickler allocates memory for any memo number
        if "PUT" in opcode.name and int(argument or 0) > size:
            raise Malformed("it numbers more objects than it can hold")
    file.seek(start)
    return _Unpickler(file, storages).load()


def read(path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the state dict in a file.

    If the file has several, averaged weights are preferred. Prefixes that wrappers add to every name are removed.

    Returns:
        (name -> array, descriptions of the other objects in the file: their keys and types)
    Raises:
        ConfigError: the file is not a file of torch.save, is damaged or hostile, or has no state dict.
    """
    try:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Malformed as error:
        raise ConfigError(f"{path} cannot be read as weights of PyTorch: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as weights of PyTorch: it is nested too deeply.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigError(
            f"{path} is damaged, or not a file of torch.save ({type(error).__name__}: {error})."
        ) from None


def _read(path):
    storages: dict[str, _Storage] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content, read_storage = _read_zip(archive, storages)
            return _gather(content, read_storage)
    with open(path, "rb") as file:
        content, read_storage = _read_legacy(file, storages)
        return _gather(content, read_storage)


def _read_zip(archive, storages):
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Malformed("it is a zip file that torch.save did not write")
    folder = names[0].removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise Malformed("its entries are compressed, and those of torch.save never are")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise Malformed("its numbers are big-endian")
    pickled = archive.read(names[0])
    content = _unpickle(io.BytesIO(pickled), storages, len(pickled))

    def read_storage(storage):
        return archive.read(f"{folder}data/{storage.key}")

    return content, read_storage


def _read_legacy(file, storages):
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if _unpickle(file, {}, size) != _LEGACY_MAGIC or _unpickle(file, {}, size) != _LEGACY_PROTOCOL:
        raise Malformed("it is not a file of torch.save")
    _unpickle(file, {}, size)  # sizes of C types on the machine that wrote it
    content = _unpickle(file, storages, size)
    offsets = {}
    for key in _unpickle(file, {}, size):
        storage = storages.get(str(key))
        if storage is None:
            raise Malformed(f"no tensor refers to the storage {key}")
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise Malformed(f"the storage {key} holds {count} numbers, not {storage.count}")
        offsets[storage.key] = file.tell()
        file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)

    def read_storage(storage):
        if storage.key not in offsets:
            raise Malformed(f"the storage {storage.key} is missing")
        file.seek(offsets[storage.key])
        return file.read(storage.count * storage.dtype.itemsize)

    return content, read_storage


def _gather(content, read_storage):
    """Returns the arrays of the state dict in a file, and descriptions of the other objects in the file.

    Args:
        content: the unpickled object.
        read_storage: storage -> its bytes.
    """
    state, others = _find(content)
    buffers, arrays = {}, {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise Malformed(f"a name in its state dict is {name!r}")
        if value is None or isinstance(value, (int, float)):
            continue  # a counter
        if not isinstance(value, _Tensor):
            raise Malformed(f"its state dict holds {name!r}, {_described(value)}, which is not a tensor")
        storage = value.storage
        if storage.key not in buffers:
            stored = read_storage(storage)
            if len(stored) < storage.count * storage.dtype.itemsize:
                raise Malformed(f"it is truncated within {name!r}")
            buffers[storage.key] = np.frombuffer(stored, storage.dtype, storage.count)
        flat = buffers[storage.key][value.offset :]
        strides = [stride * storage.dtype.itemsize for stride in value.strides]
        arrays[name] = np.lib.stride_tricks.as_strided(flat, value.shape, strides, writeable=False).copy()
    prefix = ""
    while common := next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in arrays)), None):
        prefix += common
    return {name.removeprefix(prefix): array for name, array in arrays.items()}, others


def _find(content, where=""):
    """Returns the innermost state dict, and descriptions of all else in `content`. `where` precedes their keys."""
    if not isinstance(content, dict):
        raise Malformed(f"it holds {_described(content)} instead of a dictionary of tensors")
    inner = [key for key in (*_STATES, *content) if isinstance(content.get(key), dict) and _holds_tensors(content[key])]
    # Training code can store another tensor, such as the best accuracy, next to the weights.
    if any(isinstance(value, _Tensor) for value in content.values()) and not set(inner) & set(_STATES):
        return content, ()
    if not inner:
        raise Malformed("it holds no dictionary of tensors")
    state, others = _find(content[inner[0]], f"{where}{inner[0]}.")
    return state, (
        *(f"{where}{key}: {_described(value)}" for key, value in content.items() if key != inner[0]),
        *others,
    )


def _holds_tensors(content, depth=3):
    return (
        isinstance(content, dict)
        and depth > 0
        and any(isinstance(value, _Tensor) or _holds_tensors(value, depth - 1) for value in content.values())
    )


def _described(value):
    inert = isinstance(value, _Inert) or isinstance(value, type) and issubclass(value, _Inert)
    return value.name if inert else f"a {type(value).__name__.lstrip('_').lower()}"

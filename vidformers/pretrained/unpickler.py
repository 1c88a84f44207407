"""Reads pickles as plain containers, numbers, strings and tensors, without running code that they refer to.

The unpickler of Python calls what a pickle names, and lets a pickle of a hundred bytes build keys whose hash takes
hours. This one gives every opcode a bounded meaning: it makes at most one object of bounded size, or moves objects that
earlier opcodes made. `_FUNCTIONS` lists the globals that a pickle may call. Every other global, and all that is made by
calling one, is an `Inert` object that only holds a name. Only texts are keys, here of dictionaries and of the memo: a
pickle can choose numbers that all have one hash, and no such texts, whose hash is random.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from vidformers.pretrained.tensors import Inert, Malformed, Storage, Tensor, described, shown

_MOST_OPCODES = 2**21
_LONGEST_NAME = 255  # characters of the name of a global or a storage
_LARGEST_INT = 2**1024

_STORAGES = {
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
    "UntypedStorage": np.uint8,
}
# The types of tensors that have no storage of their own: `_rebuild_tensor_v3` views bytes as them.
_VIEWED = frozenset(
    "uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
)


@dataclass(frozen=True, slots=True)
class _Function:
    """A function that a pickle may call, with at least so many arguments."""

    call: Callable
    fewest: int


@dataclass(frozen=True, slots=True)
class _Container:
    """A class that is replaced by a tuple or a dictionary of its argument, which has this place."""

    kind: type
    place: int


def _tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise Malformed("a tensor has no storage")
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _tensor_of_type(storage, offset, shape, strides, requires_grad=None, hooks=None, dtype=None, *_):
    if not isinstance(dtype, np.dtype):
        raise Malformed(f"a tensor is of the type {described(dtype)}")
    return Tensor(storage, dtype, offset, shape, strides)


def _parameter(data, *_):
    if not isinstance(data, Tensor):
        raise Malformed("a parameter holds no tensor")
    return data


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor, 4),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor, 4),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_of_type, 4),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter, 1),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter, 1),
}
_CONTAINERS = {
    ("torch", "Size"): _Container(tuple, 0),
    ("collections", "OrderedDict"): _Container(dict, 0),
    ("collections", "Counter"): _Container(dict, 0),
    ("collections", "defaultdict"): _Container(dict, 1),
}

# Opcodes whose argument is the value, without those that read it from elsewhere or need a registry.
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Bytes:
    """The part of a file that holds pickles. It gives no more bytes than the file has, whatever length is asked for."""

    def __init__(self, file, size: int):
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline()

    def tell(self) -> int:
        return self._file.tell()


class Unpickler:
    """Reads pickles that follow each other in a file.

    Args:
        file: a binary file, open for reading.
        size: the size of the file in bytes.
    Attributes:
        storages: key -> storage, of all storages that the pickles refer to.
    """

    def __init__(self, file, size: int):
        self.storages: dict[str, Storage] = {}
        self._file, self._left = _Bytes(file, size), _MOST_OPCODES

    def load(self) -> Any:
        """Returns the next object in the file.

        Raises:
            Malformed: the pickle is invalid, or uses an opcode or an object that no file of weights needs.
            Exception: one of `DAMAGE_ERRORS`, if the pickle is damaged.
        """
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[str, Any] = {}
        for opcode, argument, _ in pickletools.genops(self._file):
            self._charge(1)
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._push_literal(argument)
            elif name in _VALUES:
                self._stack.append(_VALUES[name])
            elif name in _TUPLES:
                count = _TUPLES[name]
                items = tuple(self._stack[-count:])
                if len(items) < count:
                    raise Malformed("its pickle is invalid")
                self._stack[-count:] = [items]
            elif name not in ("PROTO", "FRAME"):
                operation = getattr(self, f"_{name.lower()}", None)
                if operation is None:
                    raise Malformed(f"its pickle has the opcode {name}, which no file of weights needs")
                operation(argument)
        raise Malformed("its pickle has no end")

    def _charge(self, count: int) -> None:
        """Counts opcodes, and objects that an opcode copies."""
        self._left -= count
        if self._left < 0:
            raise Malformed(f"its pickle has more than {_MOST_OPCODES} opcodes")

    def _push_literal(self, value):
        if type(value) is int and abs(value) >= _LARGEST_INT:
            raise Malformed("its pickle holds a number of more than 1,024 bits")
        self._stack.append(value)

    # Each method below is the opcode of its name. Those that come in several encodings are bound to one method.

    def _mark(self, _):
        self._outer.append(self._stack)
        self._stack = []

    def _pop_mark(self, _=None) -> list:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dup(self, _):
        self._stack.append(self._stack[-1])

    def _put(self, number):
        self._memo[str(number)] = self._stack[-1]

    def _memoize(self, _):
        self._put(len(self._memo))

    def _get(self, number):
        self._stack.append(self._memo[str(number)])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    def _empty_list(self, _):
        self._stack.append([])

    def _empty_dict(self, _):
        self._stack.append({})

    def _empty_set(self, _):
        self._stack.append(Inert("a set"))

    def _frozenset(self, _):
        self._pop_mark()
        self._empty_set(_)

    def _tuple(self, _):
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _list(self, _):
        items = self._pop_mark()
        self._stack.append(items)

    def _dict(self, _):
        items = self._pop_mark()
        self._stack.append(_pairs(items[::2], items[1::2]))

    def _append(self, _):
        self._extend([self._stack.pop()])

    def _appends(self, _):
        self._extend(self._pop_mark())

    def _extend(self, items):
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)
        elif not isinstance(self._stack[-1], Inert):
            raise Malformed(f"its pickle appends to {described(self._stack[-1])}")

    def _additems(self, _):
        self._pop_mark()

    def _setitem(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key], [value])

    def _setitems(self, _):
        items = self._pop_mark()
        self._update(items[::2], items[1::2])

    def _update(self, keys, values):
        if isinstance(self._stack[-1], dict):
            self._stack[-1].update(_pairs(keys, values))
        elif not isinstance(self._stack[-1], Inert):
            raise Malformed(f"its pickle sets items of {described(self._stack[-1])}")

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._stack.append(_find_global(module, name))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_find_global(module, name))

    def _reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _):
        self._stack.pop()  # keyword arguments
        self._reduce(_)

    def _inst(self, argument):
        arguments = tuple(self._pop_mark())
        self._global(argument)
        self._stack.append(self._call(self._stack.pop(), arguments))

    def _obj(self, _):
        function, *arguments = self._pop_mark()
        self._stack.append(self._call(function, tuple(arguments)))

    def _call(self, function, arguments):
        if isinstance(function, Inert):
            return function
        if type(arguments) is not tuple:
            raise Malformed(f"its pickle calls a function with {shown(arguments)}")
        if isinstance(function, _Function):
            if len(arguments) < function.fewest:
                raise Malformed(f"its pickle calls a function of {function.fewest} arguments with {len(arguments)}")
            return function.call(*arguments)
        if isinstance(function, _Container):
            return self._container(function.kind, function.place, arguments)
        raise Malformed(f"its pickle calls {described(function)}")

    def _container(self, kind, place, arguments):
        content = arguments[place] if len(arguments) > place else ()
        if not isinstance(content, (tuple, list, dict)):
            raise Malformed(f"its pickle makes a {kind.__name__} of {shown(content)}")
        self._charge(len(content))
        if kind is tuple or isinstance(content, dict):
            return kind(content)
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in content):
            raise Malformed("its pickle makes a dictionary of items that are not pairs")
        return _pairs([key for key, _ in content], [value for _, value in content])

    def _build(self, _):
        self._stack.pop()  # the state of the object: attributes of dictionaries and of inert objects are not read
        if not isinstance(self._stack[-1], (Inert, dict)):
            raise Malformed(f"its pickle changes {described(self._stack[-1])}")

    def _binpersid(self, _):
        self._stack.append(self._storage(self._stack.pop()))

    def _storage(self, description):
        if type(description) is not tuple or not 5 <= len(description) <= 6 or description[0] != "storage":
            raise Malformed("it refers to an object that is not a storage")
        _, dtype, key, _, count, *view = description
        if view and view[0] is not None:
            raise Malformed("it holds views of storages, which a state dict never holds")
        if not isinstance(dtype, np.dtype):
            raise Malformed(f"a storage is of the type {described(dtype)}")
        if type(key) not in (str, int) or len(str(key)) > _LONGEST_NAME:
            raise Malformed("a storage has no name")
        if type(count) is not int or not 0 <= count < 2**62:
            raise Malformed(f"a storage holds {shown(count)} numbers")
        storage = Storage(str(key), dtype, count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Malformed(f"the storage {key} has two descriptions")
        return storage


def _pairs(keys, values) -> dict:
    """Returns a dictionary. A key that is not a text is replaced by an inert object with its text.

    The hash of a tuple that holds the same tuple twice, and so on, would take for ever.
    """
    return {key if type(key) is str else Inert(shown(key)): value for key, value in zip(keys, values, strict=True)}


def _find_global(module, name):
    if type(module) is not str or type(name) is not str or len(module) + len(name) > _LONGEST_NAME:
        raise Malformed("its pickle names an object by something else than a name")
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    if (module, name) in _CONTAINERS:
        return _CONTAINERS[module, name]
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return np.dtype(_STORAGES[name])
    if module == "torch" and name in _VIEWED and (kind := getattr(ml_dtypes, name, getattr(np, name, None))):
        return np.dtype(kind)
    return Inert(f"{module}.{name}")


def read(content: bytes) -> tuple[Any, dict[str, Storage]]:
    """Returns the object of a pickle, and the storages that it refers to. Raises the errors of `Unpickler.load`."""
    unpickler = Unpickler(io.BytesIO(content), len(content))
    return unpickler.load(), unpickler.storages

"""Reads checkpoints of Flax and Orbax as arrays. They hold numbers alone: no code and no pickles.

Flax writes a tree in one file of msgpack, Orbax a folder. A checkpoint of a training run holds more than the
parameters; `_TREES` says where training code puts them.
"""

from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np

from input_pipeline.json_files import open_regular
from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained.damage import DAMAGE_ERRORS
from vidformers.pretrained.limits import LONGEST_NAME, MOST_ARRAYS

# The paths of the parameters in the checkpoints of training code, averaged parameters first. Flax before 2022 has an
# optimizer with a target. `average` and `parameters` are those of a run of this library.
_TREES = (("ema_params",), ("params",), ("optimizer", "target"), ("target",), ("model", "params"))
_TREES += (("average",), ("parameters",))
_DEEPEST = 100
_MOST_OTHERS = 100  # descriptions of other trees
_MOST_VALUES = 100 * MOST_ARRAYS  # in a file of msgpack: each array of a checkpoint takes a few
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # the extension types of flax.serialization
_CHUNKED = "__msgpack_chunked_array__"  # marks an array that was too large for one value of msgpack
_MOST_AXES = 32
_LONGEST_TYPE = 32
_KINDS = "fiubc"


def is_msgpack(first: bytes) -> bool:
    """Returns whether a file with these first 16 bytes is a tree of Flax: a map of msgpack whose first key is text."""
    if len(first) < 2:
        return False
    at = {0xDE: 3, 0xDF: 5}.get(first[0], 1 if 0x81 <= first[0] <= 0x8F else 0)  # bytes of the number of entries
    return 0 < at < len(first) and (0xA1 <= first[at] <= 0xBF or first[at] == 0xD9) and first[5:8] != b"\0\0\0"


def read_msgpack(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a file of `flax.serialization`.

    Returns:
        (names joined by '/' -> array, descriptions of the other trees in the file)
    Raises:
        ConfigError: the file is damaged, or holds something else than a tree of numbers.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        tree = _unchunked(_Reader().read(content))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except DAMAGE_ERRORS as error:
        raise ConfigError(
            f"{path} is damaged, or not a file of Flax ({type(error).__name__}: {one_line(error)})."
        ) from None
    return parameters(path, tree)


class _Reader:
    """Reads values of msgpack, of which a file has a bounded number."""

    def __init__(self):
        self._left = _MOST_VALUES

    def read(self, content: bytes, raw: bool = False):
        """Returns the value. Raises ValueError or an error of msgpack.

        Args:
            content: one value of msgpack.
            raw: whether it lies within an array, so that texts are read as bytes and no arrays lie within it.
        """
        self._count(content)
        # Only texts are keys, which is the default: a file can choose numbers that all have one hash.
        return msgpack.unpackb(content, raw=raw, ext_hook=msgpack.ExtType if raw else self._extension)

    def _count(self, content: bytes) -> None:
        """Counts the values before any is made: each takes up to a hundred times its bytes."""
        unpacker = msgpack.Unpacker(max_buffer_size=max(len(content), 1))
        unpacker.feed(content)
        following = 1
        while following:
            self._left -= 1
            if self._left < following - 1:
                raise ValueError(f"it holds more than {_MOST_VALUES} values")
            first = content[unpacker.tell() : unpacker.tell() + 1]
            following -= 1
            if b"\x80" <= first <= b"\x8f" or first in (b"\xde", b"\xdf"):
                following += 2 * unpacker.read_map_header()
            elif b"\x90" <= first <= b"\x9f" or first in (b"\xdc", b"\xdd"):
                following += unpacker.read_array_header()
            else:
                unpacker.skip()

    def _extension(self, code: int, data: bytes):
        if code == _COMPLEX:
            return complex(*_listed(self.read(data, raw=True), 2, float))
        if code not in (_NDARRAY, _SCALAR):
            return msgpack.ExtType(code, data)
        array = _array(*_listed(self.read(data, raw=True), 3, object))
        return array if code == _NDARRAY else array[()]


def _listed(values, count: int, kind: type) -> list:
    if type(values) is not list or len(values) != count or not all(isinstance(value, kind) for value in values):
        raise ValueError("the values of an extension are not those that Flax writes")
    return values


def _array(shape, name, numbers) -> np.ndarray:
    """Returns the array of an extension value: its shape, the name of its type, and its bytes."""
    if type(name) is not bytes or len(name) > _LONGEST_TYPE or type(numbers) is not bytes:
        raise ValueError("the type or the numbers of an array are no text")
    name = name.decode()
    is_small = name.startswith(("bfloat16", "float8_"))
    try:
        dtype = np.dtype(getattr(ml_dtypes, name) if is_small else name)
    except (TypeError, AttributeError):  # NumPy and ml_dtypes know no such type
        raise ValueError(f"an array is of the type {name}") from None
    if not is_small and dtype.kind not in _KINDS:
        raise ValueError(f"an array is of the type {name}")
    return np.frombuffer(numbers, dtype).reshape(_shape(shape))


def _shape(shape) -> tuple[int, ...]:
    if type(shape) is not list or len(shape) > _MOST_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("the shape of an array is not a list of numbers")
    return tuple(shape)


def _unchunked(tree, depth: int = 0):
    """Joins the pieces of the arrays that Flax split."""
    if not isinstance(tree, dict):
        return tree
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    if _CHUNKED in tree:
        if not all(isinstance(tree.get(name), dict) for name in ("chunks", "shape")):
            raise ValueError("an array has no pieces or no shape")
        chunks, shape = ([tree[name][str(i)] for i in range(len(tree[name]))] for name in ("chunks", "shape"))
        if any(not isinstance(chunk, np.ndarray) or chunk.dtype != chunks[0].dtype for chunk in chunks):
            raise ValueError("the pieces of an array are not arrays of one type")
        return np.concatenate(chunks).reshape(_shape(shape))
    return {name: _unchunked(value, depth + 1) for name, value in tree.items()}


def parameters(path, tree) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the arrays of the parameters in a checkpoint, and descriptions of the rest.

    Args:
        path: the path of the checkpoint, for messages.
        tree: dictionaries, whose leaves are arrays and numbers.
    Raises:
        ConfigError: the tree holds no parameters, too many of them, or other values among them.
    """
    others: tuple[str, ...] = ()
    for names in _TREES:
        found = _at(tree, names)
        if found:
            rest = [f"{str(key)[:LONGEST_NAME]}: a {type(tree[key]).__name__}" for key in tree if key != names[0]]
            others = tuple(rest[:_MOST_OTHERS])
            tree = found
            break
    while isinstance(tree, dict) and set(tree) == {"params"}:
        tree = tree["params"]
    arrays: dict[str, np.ndarray] = {}
    for name, array in _leaves(path, tree):
        arrays[name] = array
        if len(arrays) > MOST_ARRAYS:
            raise ConfigError(f"{path} holds more than {MOST_ARRAYS} arrays, and no model here has as many.")
    if not arrays:
        raise ConfigError(f"{path} holds no tree of parameters.")
    return arrays, others


def _at(tree, names):
    """Returns the dictionary under a path of keys, or None."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


def _leaves(path, tree, prefix=""):
    """Yields (name, array) of a tree of dictionaries. None, which stands for a module without arrays, is left out."""
    if len(prefix) > LONGEST_NAME:
        raise ConfigError(f"{path} holds an array with a name of more than {LONGEST_NAME} characters.")
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(path, value, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(tree, (np.ndarray, np.generic, int, float)):
        yield prefix, np.asarray(tree)
    elif tree is not None:
        raise ConfigError(f"{path} holds {prefix!r}, a {type(tree).__name__}, which is not an array.")

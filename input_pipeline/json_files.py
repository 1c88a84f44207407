"""Reads files whose content cannot be trusted: regular files only, and JSON of bounded size, depth and memory.

Every reader of JSON uses `read_json` or `parse_json`, and says which types it expects:
`read_json(path, {"config": {"model": dict}})`.
"""

import collections
import errno
import json
import os
import stat
from typing import Any, BinaryIO

MEBIBYTE = 2**20
_MOST_BYTES = 64 * MEBIBYTE
_DEEPEST = 100
_FREE_MEMORY = 1024 * MEBIBYTE  # reading any file may take as much memory
_MEMORY_PER_BYTE = 20  # reading a larger file may take as many bytes for each of its bytes
# Upper bounds of the memory of Python's objects in bytes, by the characters of the text that make them.
_MEMORY = {"{": 184, "[": 64, ":": 200, ",": 64}
_MEMORY_OF_CHARACTERS = 5
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}

Kind = type | tuple[type, ...] | dict[str, Any]


class JsonError(ValueError):
    """The content is not the expected JSON. The message continues a sentence that starts with the path of the file."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading. A pipe or a device could block or never end.

    Raises:
        OSError: the file cannot be opened, or is not a regular file. `strerror` says so.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "It is a pipe or a device, not a regular file", os.fspath(path))


def read_json(path: str | os.PathLike, kind: Kind = dict, most_bytes: int = _MOST_BYTES) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: a regular file of UTF-8 text with or without a byte order mark.
        kind: the type of the content, see `check_kind`.
        most_bytes: a larger file is refused.
    Raises:
        OSError: as `open_regular`.
        JsonError: as `parse_json`, or the file is too large.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most_bytes:
            raise JsonError(f"has {size} bytes, and files of its kind have at most {most_bytes}")
        return parse_json(file.read(most_bytes + 1), kind)


def parse_json(content: bytes | str, kind: Kind = dict) -> Any:
    """Returns the value of a JSON text.

    Args:
        content: the text, or its bytes in UTF-8.
        kind: the type of the value, see `check_kind`.
    Raises:
        JsonError: the text is not JSON, gives a key of an object more than once, is nested more than 100 levels deep,
            would take more memory than 1 GiB and 20 times its size, or has another type.
    """
    try:
        text = content if isinstance(content, str) else str(content, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 text: byte {error.start} is invalid") from None
    _check_memory(text)
    try:
        value = json.loads(text, object_pairs_hook=_as_dict)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise JsonError(f"is nested more than {_DEEPEST} levels deep") from None
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise JsonError("is not JSON: a number has too many digits") from None
    _check_depth(value)
    check_kind(value, kind)
    return value


def check_kind(value: Any, kind: Kind, where: str = "") -> None:
    """Checks the type of a JSON value.

    Args:
        value: the value.
        kind: a type, several types of which it must have one, or for an object with certain fields a dictionary
            field -> kind. True and false are not numbers.
        where: the path of the value in its file, such as `config.model`, or ''.
    Raises:
        JsonError: the value has another type, or a field is missing.
    """
    if isinstance(kind, dict):
        check_kind(value, dict, where)
        for field, inner in kind.items():
            path = f"{where}.{field}" if where else field
            if field not in value:
                raise JsonError(f"has no field {path!r}")
            check_kind(value[field], inner, path)
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        expected = " or ".join(dict.fromkeys("null" if each is type(None) else _KINDS[each] for each in kinds))
        found = "null" if value is None else _KINDS[type(value)]
        raise JsonError(f"holds {found}{f' as {where!r}' if where else ''} instead of {expected}")


def _as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object as a dict. Of a key that is given twice, Python would keep the last value silently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        key, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise JsonError(f"gives the key {key[:50]!r} more than once")
    return value


def with_tuples(value: Any) -> Any:
    """Returns a value of a JSON file with tuples in place of lists. JSON has no tuples and stores them as lists."""
    if isinstance(value, dict):
        return {name: with_tuples(child) for name, child in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _check_memory(text: str) -> None:
    """Refuses a text whose objects would take too much memory, before they are made."""
    if len(text) * (max(_MEMORY.values()) + _MEMORY_OF_CHARACTERS) <= _FREE_MEMORY:
        return
    memory = sum(text.count(character) * size for character, size in _MEMORY.items())
    memory += len(text) * _MEMORY_OF_CHARACTERS
    if memory > max(_FREE_MEMORY, len(text) * _MEMORY_PER_BYTE):
        raise JsonError(f"would take about {memory // MEBIBYTE} MiB of memory")


def _check_depth(value: Any) -> None:
    """Refuses values that functions which call themselves for each level cannot visit."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(_DEEPEST):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in (dict, list)
        ]
        if not level:
            return
    raise JsonError(f"is nested more than {_DEEPEST} levels deep")

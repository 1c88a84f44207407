"""Reads files of safetensors, and several files that an index lists."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np

from input_pipeline.fields import shown
from input_pipeline.json_files import JsonError, check_kind, open_regular, parse_json, read_json
from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained.damage import DAMAGE_ERRORS
from vidformers.pretrained.limits import LONGEST_NAME, MEBIBYTE, TooMuch, check_count

_LARGEST_HEADER = 16 * MEBIBYTE
_MOST_AXES = 32
_MOST_FILES = 1000
_METADATA = "__metadata__"
_ENTRY = {"dtype": str, "shape": list, "data_offsets": list}
_TYPES = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL C64".split())  # `safetensors.numpy` reads them
# The types that it does not read, where ml_dtypes has them.
_SMALL = {
    name: np.dtype(getattr(ml_dtypes, kind))
    for name, kind in {
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
    }.items()
    if hasattr(ml_dtypes, kind)
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of safetensors by name.

    Raises:
        ConfigError: the file is damaged or hostile.
    """
    try:
        header = _read_header(path)
        return _read_arrays(path, header)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except JsonError as error:
        raise ConfigError(f"{path} is damaged, or not a file of safetensors: its header {error}.") from None
    except DAMAGE_ERRORS as error:
        raise ConfigError(f"{path} is damaged, or not a file of safetensors: {one_line(error)}.") from None


def _read_header(path) -> dict:
    """Returns the header, whose length comes first, with entries of known types. Raises ValueError or ConfigError."""
    with open_regular(path) as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"its header has {length} bytes, and the file {size}")
        header = parse_json(file.read(length))
    check_count(len(header))
    for name, entry in header.items():
        if name == _METADATA:
            check_kind(entry, dict, name)
            continue
        if len(name) > LONGEST_NAME:
            raise TooMuch(f"it holds an array with a name of {len(name)} characters")
        check_kind(entry, _ENTRY, name)
        if entry["dtype"] not in _TYPES and entry["dtype"] not in _SMALL:
            raise ConfigError(f"{path}: {name!r} has the type {shown(entry['dtype'])}, which is not read.")
        if len(entry["shape"]) > _MOST_AXES:
            raise ValueError(f"{name!r} has {len(entry['shape'])} axes")
    return header


def _read_arrays(path, header) -> dict[str, np.ndarray]:
    """Returns the arrays. Raises ValueError or an error of safetensors if the header does not describe the file."""
    from safetensors import safe_open
    from safetensors.numpy import load_file

    small = {name: _SMALL[entry["dtype"]] for name, entry in header.items() if entry.get("dtype") in _SMALL}
    if not small:
        return load_file(path)
    with safe_open(path, framework="np") as file, open_regular(path) as numbers:
        start, arrays = 8 + int.from_bytes(numbers.read(8), "little"), {}
        for name in file.keys():
            if name not in small:
                arrays[name] = file.get_tensor(name)
                continue
            first, last = header[name]["data_offsets"]  # which safe_open has checked
            numbers.seek(start + first)
            arrays[name] = np.frombuffer(numbers.read(last - first), small[name]).reshape(header[name]["shape"])
    return arrays


def read_indexed(path: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Returns the arrays of all files of safetensors that an index lists, and these files.

    Raises:
        ConfigError: the index or a file is damaged or missing, or two files hold an array of the same name.
    """
    try:
        names = set(_file_names(read_json(path, {"weight_map": dict})["weight_map"]))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except JsonError as error:
        raise ConfigError(f"{path} is not an index of files of safetensors: it {error}.") from None
    if len(names) > _MOST_FILES:
        raise ConfigError(f"{path} lists {len(names)} files, and at most {_MOST_FILES} are read.")
    files, arrays = [path.parent / name for name in sorted(names)], {}
    for file in files:
        if not os.path.exists(file):
            raise ConfigError(f"{path} names {file.name}, which is missing.")
        found = read(file)
        if both := sorted(found.keys() & arrays.keys()):
            raise ConfigError(f"{path} lists several files that hold the array {both[0]!r}, {file.name} among them.")
        arrays |= found
    return arrays, files


def _file_names(weight_map: dict):
    """Yields the names of files in an index."""
    for array, name in weight_map.items():
        check_kind(name, str, f"weight_map.{array[:LONGEST_NAME]}")
        if name in ("", "..") or Path(name).name != name or "\0" in name or len(name) > LONGEST_NAME:
            raise JsonError(f"lists {name[:100]!r}, which is not the name of a file beside it")
        yield name

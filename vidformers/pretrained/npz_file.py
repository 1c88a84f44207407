"""Reads npz archives of NumPy. The header of every array is checked before its numbers are unpacked."""

import math
import zipfile

import numpy as np

from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained.archive import BadArchive, open_archive
from vidformers.pretrained.damage import DAMAGE_ERRORS
from vidformers.pretrained.limits import TooMuch, check_count

COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_npz(path, file) -> bool:
    """Returns whether a zip archive holds nothing but arrays of NumPy. Raises ConfigError if it is damaged."""
    try:
        with open_archive(file, COMPRESSION) as archive:
            names = archive.namelist()
            return bool(names) and all(name.endswith(".npy") for name in names)
    except (BadArchive, TooMuch) as error:
        raise ConfigError(f"{path} is damaged, or not a file of weights: {error}.") from None


def read(path, file) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz archive by name.

    Args:
        path: the path of the file, for messages.
        file: the file, open for reading.
    Raises:
        ConfigError: the archive is damaged or hostile, or holds pickled objects.
    """
    try:
        with open_archive(file, COMPRESSION) as archive:
            check_count(len(archive.infolist()))
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in archive.infolist()}
    except (OSError, *DAMAGE_ERRORS) as error:
        raise ConfigError(
            f"{path} is damaged, or holds pickled objects, which are not read: {one_line(error)}."
        ) from None


def _read_array(archive, entry) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{entry.filename[:100]!r} has version {version} of the format of NumPy")
        try:
            shape, _, dtype = _HEADERS[version](file)
        except TypeError as error:  # NumPy parses the header as a literal of Python, which may hold values of any type
            raise ValueError(f"{entry.filename[:100]!r} has a header that is invalid: {error}") from None
        if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
            raise ValueError(f"{entry.filename[:100]!r} holds objects or records")
        if any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"{entry.filename[:100]!r} has a shape of other values than sizes")
        if file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise ValueError(f"{entry.filename[:100]!r} has {entry.file_size} bytes, which do not fit its header")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)

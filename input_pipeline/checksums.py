"""Checksums of the files in a folder, which find flipped bits, truncated files and missing files.

`checksums.json` in the folder lists for each file its bytes and the CRC-32 of each block. Blocks let several threads
and processes share the work also where one file holds almost everything.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from input_pipeline.files import write_text
from input_pipeline.json_files import JsonError, check_kind, read_json

NAME = "checksums.json"
_BLOCK_BYTES = 2**24
_THREADS = 8  # also with fewer cores: they wait for the disk


def write_checksums(folder: Path) -> None:
    """Writes `checksums.json` for all files in `folder` and its subfolders.

    Raises:
        OSError: a file cannot be read, or the list cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    files = {os.fspath(path.relative_to(folder)): [path.stat().st_size] for path in paths}
    blocks = [(name, offset) for name, (size,) in files.items() for offset in range(0, size, _BLOCK_BYTES)]
    for (name, _), checksum in zip(blocks, _map(partial(_checksum, folder, _BLOCK_BYTES), blocks), strict=True):
        files[name].append(checksum)
    content = {"checksum": _checksum_of_list(_BLOCK_BYTES, files), "block_bytes": _BLOCK_BYTES, "files": files}
    write_text(folder / NAME, json.dumps(content, indent=0) + "\n")


def find_damage(folder: Path, part: int = 0, parts: int = 1, *, large: bool | None = None) -> str | None:
    """Compares the files of `folder` with its `checksums.json`. Files that the list does not name are ignored.

    Args:
        part, parts: only this part of the blocks is read, the first being 0. The sizes of all files are compared.
        large: True reads only the files of more than one block (16 MiB), False only the others.
    Returns:
        A clause that names the damaged file, or None if nothing is damaged.
    Raises:
        OSError: a file exists and cannot be read.
    """
    try:
        content = read_json(folder / NAME, {"checksum": int, "block_bytes": int, "files": dict})
        block_bytes, files = content["block_bytes"], content["files"]
        check_kind(files, dict.fromkeys(files, list))
        is_damaged = (
            content["checksum"] != _checksum_of_list(block_bytes, files)
            or block_bytes < 1
            or not all(numbers and all(type(number) is int for number in numbers) for numbers in files.values())
        )
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (JsonError, IsADirectoryError):
        is_damaged = True
    if is_damaged:
        return f"{NAME} is damaged"
    for name, (size, *_) in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size} bytes instead of {size}"
    blocks = [
        ((name, index * block_bytes), checksum)
        for name, (size, *checksums) in files.items()
        if large is None or large == (size > block_bytes)
        for index, checksum in enumerate(checksums)
    ][part::parts]
    actual = _map(partial(_checksum, folder, block_bytes), [block for block, _ in blocks])
    for ((name, _), expected), checksum in zip(blocks, actual, strict=True):
        if checksum != expected:
            return f"{name} differs from its checksum"
    return None


def _checksum_of_list(block_bytes: int, files: dict[str, list[int]]) -> int:
    return zlib.crc32(json.dumps([block_bytes, files]).encode())


def _checksum(folder: Path, block_bytes: int, block: tuple[str, int]) -> int:
    """Returns the CRC-32 of the block of `block_bytes` bytes that starts at an offset of a file."""
    name, offset = block
    value, left = 0, block_bytes
    with open(folder / name, "rb", buffering=0) as file:
        file.seek(offset)
        while left > 0 and (data := file.read(min(left, 2**20))):
            value, left = zlib.crc32(data, value), left - len(data)
    return value


def _map(function: Callable, items: Iterable) -> list[Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))

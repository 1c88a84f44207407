"""Atomic writing: a file or a folder appears complete under its name, or not at all.

Content goes to a temporary name in the same folder and is then renamed. A single file is flushed to the disk first;
the files of a folder must be flushed by the caller, by `write_bytes` or `flush_folder`. A process that is killed leaves
at most a file or folder whose name starts with a dot and ends in `.tmp`.
"""

import contextlib
import glob
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from input_pipeline.errors import DataError

_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_file(path) -> Iterator[Path]:
    """Yields a temporary path to write to, which replaces `path` when the block ends without an error.

    Raises:
        OSError: the file cannot be written, flushed or renamed. The error names `path`, not the temporary path.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path) -> Iterator[Path]:
    """Yields an empty temporary folder, which is renamed to `path` when the block ends without an error.

    `path` must not exist, or must be an empty folder. Temporary folders that killed processes left for the same `path`
    are removed first. Callers must therefore exclude each other, for example by a lock.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(stem(path))}.*{_SUFFIX}"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path, text: str) -> None:
    """Writes a text file atomically in UTF-8. File names that are not UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_lines(path, lines: Iterable[str]) -> None:
    """Writes a text file with one line for each text, see `write_text` and `require_lines`."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def require_lines(texts: Iterable[str]) -> None:
    """Raises DataError if a text contains a line break, so that a file with one text per line cannot hold it."""
    for text in texts:
        if "\n" in text or "\r" in text:
            raise DataError(f"The name {text!r} contains a line break, which a list cannot hold. Rename it.")


def is_temporary(name: str) -> bool:
    """Returns whether the file name `name`, without its folder, is a temporary name of this module."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def unused_path(path: Path) -> Path:
    """Returns `path`, or if it exists the first of `path.2`, `path.3` and so on that does not."""
    names = itertools.chain([path.name], (f"{path.name}.{number}" for number in itertools.count(2)))
    return next(each for name in names if not os.path.lexists(each := path.with_name(name)))


def remove_temporaries(folder) -> None:
    """Removes the temporary files that killed processes left in `folder`. No process may be writing there."""
    for path in Path(folder).iterdir():
        if is_temporary(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Returns a name in the same folder that no other process takes."""
    return path.with_name(f".{stem(path)}.{os.urandom(4).hex()}{_SUFFIX}")


def stem(path: Path) -> str:
    """Returns the name of `path`, or a hash of a long name, for the names of helper files: a name has 255 bytes."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()


def flush_folder(folder: Path) -> None:
    """Flushes a folder with all its files and subfolders to the disk.

    Raises:
        OSError: the disk refuses a file.
    """
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():  # a pipe would block
            flush(path)


def flush(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Output files and folders of commands: verified before the work, and locked until it ends.

A lock is that of `flock`: it ends with the process, however the process ends. The file of the lock is empty. Its name
starts with a dot and ends in `.lock`. The last holder removes it; after a kill it stays, which does no harm.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from input_pipeline.errors import DataError
from input_pipeline.files import stem

_LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # some network file systems have no locks
_PROBE_BYTES = 4096


@contextlib.contextmanager
def output_file(path, flag: str | None = None) -> Iterator[None]:
    """Locks an output file until the block ends.

    Args:
        path: the file. It may exist. Its folder must exist.
        flag: the flag that names the file, for messages.
    Raises:
        DataError: the file cannot be written, or another process has the lock.
    """
    path, name = Path(os.path.realpath(path)), _name(path, flag)
    if path.exists() and not path.is_file():
        raise DataError(f"{name} is not a file. Give the path of a file.")
    with _reserved(path.parent, beside(path), name, make=False):
        yield


@contextlib.contextmanager
def output_folder(path, flag: str | None = None, shared: bool = False) -> Iterator[None]:
    """Locks an output folder until the block ends. Creates the folder, and removes it again if it stays empty.

    Args:
        path: the folder. It may exist and hold files.
        flag: the flag that names the folder, for messages.
        shared: whether other processes may share the folder, if they ask for it in the same way.
    Raises:
        DataError: the folder cannot be written to, or another process has the lock.
    """
    folder = Path(os.path.realpath(path))
    with _reserved(folder, folder / _LOCK, _name(path, flag), shared):
        yield


@contextlib.contextmanager
def new_folder(path, flag: str | None = None) -> Iterator[None]:
    """Locks the name of a folder that is to be made, for example by `files.atomic_folder`, until the block ends.

    Args:
        path: the folder. It must not exist, or must be empty.
        flag: the flag that names the folder, for messages.
    Raises:
        DataError: the folder exists and is not empty, it cannot be made, or another process has the lock.
    """
    path, name = Path(os.path.realpath(path)), _name(path, flag)
    with _reserved(path.parent, beside(path), name):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise DataError(f"{name} exists and is not an empty folder. Give another folder.")
        yield


def require_space(path, num_bytes: int, flag: str | None = None) -> None:
    """Raises DataError unless the disk has room for `num_bytes` more bytes in the folder of `path`."""
    free = shutil.disk_usage(Path(path).absolute().parent).free
    if free < num_bytes:
        raise DataError(
            f"{_name(path, flag)} needs {num_bytes / 1e6:,.0f} MB, but the disk has {free / 1e6:,.0f} MB left. Make "
            "room, or give a path on another disk."
        )


def beside(path: Path) -> Path:
    """Returns the lock file of a file or folder, in the folder that holds it."""
    return path.with_name(f".{stem(path)}{_LOCK}")


def is_lock(name: str) -> bool:
    """Returns whether `name`, without its folder, is the name of a lock file."""
    return name.startswith(".") and name.endswith(_LOCK)


@contextlib.contextmanager
def locked(path: Path, taken: str | None = None, shared: bool = False) -> Iterator[None]:
    """Holds the lock of the file `path` until the block ends.

    Args:
        path: the lock file. It is created if it does not exist.
        taken: the message if another process has the lock. None waits for the lock.
        shared: whether several processes may hold the lock, if all ask for it in this way.
    Raises:
        DataError: another process has the lock, and `taken` is given.
    """
    while True:
        file = open(path, "a")
        try:
            _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            file.close()
            raise DataError(taken) from None
        if _is_named(file, path):
            break
        file.close()  # its last holder has removed the file after it was opened here
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if others share the lock
            if _is_named(file, path):
                path.unlink()
        file.close()


def _flock(file: IO, mode: int) -> None:
    """Takes a lock, or does nothing on a disk without locks."""
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_named(file: IO, path: Path) -> bool:
    """Returns whether an open file is the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _name(path, flag: str | None) -> str:
    return f"--{flag}={path}" if flag else str(path)


@contextlib.contextmanager
def _reserved(folder: Path, lock_file: Path, name: str, shared: bool = False, make: bool = True) -> Iterator[None]:
    """Makes `folder` if `make`, verifies that files can be written to it, and holds the lock of the output `name`."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    advice = "Wait until it ends" + (", or give another path." if name.startswith("--") else ".")
    taken = f"{name} is being written by another command. {advice}"
    try:
        with contextlib.ExitStack() as stack:
            try:
                if make:
                    folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as file:  # has no name, so it collides with no other process
                    file.write(bytes(_PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())  # some disks report no earlier that they are full
                stack.enter_context(locked(lock_file, taken, shared))
            except OSError as error:
                files = [str(each) for each in (folder, *folder.parents) if each.is_file()]
                missing = "" if folder.exists() or files else f"the folder {folder} does not exist"
                reason = f"{files[0]} is not a folder" if files else missing or error.strerror
                raise DataError(f"{name} cannot be written: {reason}. Give a path that you may write to.") from None
            yield
    finally:
        for each in created:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()

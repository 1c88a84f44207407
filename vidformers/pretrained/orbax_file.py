"""Reads checkpoints of Orbax in a process of its own, which may take a bounded amount of memory and time.

TensorStore, by which Orbax reads, unpacks whatever a file holds. A damaged or hostile file can end its process.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from input_pipeline import checksums
from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained.flax_file import parameters
from vidformers.pretrained.limits import MEBIBYTE, check_bytes

_ORBAX = ("_METADATA", "manifest.ocdbt")  # files of which every checkpoint of Orbax has one
_ITEMS = ("default", "state", "params", "pytree")  # folders in which Orbax's managers put a checkpoint's tree
_MOST_FILES = 100_000
_BYTES_PER_BYTE = 4  # optimizer states of zeros take no space in a checkpoint
_FREE_SECONDS, _BYTES_PER_SECOND = 20, 20 * MEBIBYTE  # of the processors, all together
_FREE_MEMORY, _MEMORY_PER_BYTE = 768 * MEBIBYTE, 10
_MEMORY_PER_THREAD = 16 * MEBIBYTE
_WAIT_SECONDS = 600
_REFUSED = 3  # the exit status with a message
_PYTHON_ERROR = 1  # the exit status of Python after an exception, here an error of the program


def orbax_folder(folder: Path) -> Path | None:
    """Returns the folder of Orbax's checkpoint that `folder` is or holds, or None."""
    for place in (folder, *(folder / name for name in _ITEMS)):
        if any((place / name).exists() for name in _ORBAX):
            return place
    return None


def read(folder: Path, *, is_verified: bool = False) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[Path]]:
    """Reads a checkpoint of Orbax into the memory of the host.

    Args:
        is_verified: the caller has compared the files with their checksums, if there are some.
    Returns:
        (names joined by '/' -> array, descriptions of the other trees in the checkpoint, the files of the checkpoint)
    Raises:
        ConfigError: the checkpoint is damaged or hostile.
    """
    files = _files(folder)
    whole = folder.absolute().parent  # of a checkpoint of a run of this library
    if not is_verified and (whole / checksums.NAME).is_file() and (damage := checksums.find_damage(whole)):
        raise ConfigError(f"{whole} is damaged: {damage}. Name another checkpoint.")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", __name__, os.path.abspath(folder)]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{folder} could not be read as a checkpoint of Orbax in {_WAIT_SECONDS} seconds.") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror or error}.") from None
    if done.returncode == _REFUSED:
        raise ConfigError(done.stdout.decode("utf-8", "replace"))
    if done.returncode == _PYTHON_ERROR:
        raise RuntimeError(f"The process that reads {folder} failed:\n{done.stderr.decode('utf-8', 'replace')}")
    if done.returncode:
        ended = -done.returncode
        reason = "took too long" if ended == signal.SIGXCPU else f"ended with status {done.returncode}"
        raise ConfigError(f"{folder} is damaged, or not a checkpoint of Orbax: the process that read it {reason}.")
    return *_unpack(done.stdout), files


def _files(folder: Path) -> list[Path]:
    """Returns the files in a folder and in the folders within it, sorted. Raises ConfigError if one is not regular."""
    files: list[Path] = []
    for parent, _, names in os.walk(folder):
        files += [Path(parent, name) for name in names]
        if len(files) > _MOST_FILES:
            raise ConfigError(f"{folder} holds more than {_MOST_FILES} files.")
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file} cannot be read: It is a pipe or a device, not a regular file.")
    return sorted(files)


def _pack(arrays: dict[str, np.ndarray], others: tuple[str, ...]) -> bytes:
    """Returns the result of reading as bytes: the length of a header, the header, and the numbers of the arrays."""
    specs = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    header = json.dumps({"arrays": specs, "others": others}).encode()
    numbers = (np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return b"".join((len(header).to_bytes(8, "little"), header, *numbers))


def _unpack(content: bytes) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the arrays and descriptions that `_pack` packed."""
    at = 8 + int.from_bytes(content[:8], "little")
    header, arrays = json.loads(content[8:at]), {}
    for name, dtype, shape in header["arrays"]:
        # np.dtype knows the types of ml_dtypes by their names, once that is imported.
        arrays[name] = np.frombuffer(content, np.dtype(dtype), math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    return arrays, tuple(header["others"])


def _limit_process(file_bytes: int) -> None:
    """Bounds the memory and the processor time that this process may take from now on."""
    with open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    memory = max(_FREE_MEMORY, _MEMORY_PER_BYTE * file_bytes) + _MEMORY_PER_THREAD * (os.cpu_count() or 1)
    seconds = int(sum(os.times()[:2]) + _FREE_SECONDS + file_bytes / _BYTES_PER_SECOND)
    for kind, limit in ((resource.RLIMIT_DATA, used + memory), (resource.RLIMIT_CPU, seconds)):
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


def _restore(folder: Path):
    """Returns the tree of a checkpoint with NumPy's arrays. Raises ConfigError if the checkpoint is damaged."""
    import jax
    import orbax.checkpoint as ocp

    size = sum(file.stat().st_size for file in _files(folder))
    _limit_process(size)
    with ocp.PyTreeCheckpointer() as checkpointer:
        with _damage(folder):
            metadata = checkpointer.metadata(folder)
            tree = getattr(metadata, "item_metadata", metadata)
            tree = dict(getattr(tree, "tree", tree))
        arrays = [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "shape", None)]
        with _damage(folder):
            nbytes = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in arrays)
            check_bytes(nbytes, size, _BYTES_PER_BYTE)
        restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        with _damage(folder):
            return checkpointer.restore(folder, restore_args=restore)


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Converts exceptions to ConfigError. Only calls of Orbax and the use of what they return belong within.

    Orbax raises errors of any type for a damaged folder, `Exception` itself included.
    """
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"{folder} is damaged, or not a checkpoint of Orbax ({type(error).__name__}: {one_line(error)})."
        ) from error


def main(folder: str, out) -> int:
    """Reads a checkpoint, and writes its arrays to `out`, or why it cannot be read. Returns the exit status."""
    try:
        result = _pack(*parameters(folder, _restore(Path(folder))))
    except ConfigError as error:
        out.write(str(error).encode("utf-8", "surrogateescape"))
        return _REFUSED
    out.write(result)
    return 0


if __name__ == "__main__":
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the results
    with results:
        status = main(sys.argv[1], results)
    os._exit(status)  # threads of TensorStore could still run

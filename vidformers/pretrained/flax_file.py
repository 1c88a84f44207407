"""Reads checkpoints of Flax and Orbax as arrays. They hold numbers alone: no code and no pickles.

Flax writes a tree in one file of msgpack, Orbax a folder. A checkpoint of a training run holds more than the
parameters; `_TREES` says where training code puts them.
"""

from pathlib import Path

import numpy as np

from vidformers.errors import ConfigError

# The paths of the parameters in the checkpoints of training code, averaged parameters first. Flax before 2022 has an
# optimizer with a target.
_TREES = (("ema_params",), ("params",), ("optimizer", "target"), ("target",), ("model", "params"))
_ORBAX = ("_METADATA", "manifest.ocdbt")  # files of which every checkpoint of Orbax has one
_ITEMS = ("default", "state", "params", "pytree")  # folders in which Orbax's managers put a checkpoint's tree


def is_msgpack(first: bytes) -> bool:
    """Returns whether a file with these first 16 bytes is a tree of Flax: a map of msgpack whose first key is text."""
    if len(first) < 2:
        return False
    at = {0xDE: 3, 0xDF: 5}.get(first[0], 1 if 0x81 <= first[0] <= 0x8F else 0)  # bytes of the number of entries
    return 0 < at < len(first) and (0xA1 <= first[at] <= 0xBF or first[at] == 0xD9) and first[5:8] != b"\0\0\0"


def orbax_folder(folder: Path) -> Path | None:
    """Returns the folder of Orbax's checkpoint that `folder` is or holds, or None."""
    for place in (folder, *(folder / name for name in _ITEMS)):
        if any((place / name).exists() for name in _ORBAX):
            return place
    return None


def read_msgpack(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a file of `flax.serialization`.

    Returns:
        (names joined by '/' -> array, descriptions of the other trees in the file)
    Raises:
        ConfigError: the file is damaged, or holds something else than a tree of numbers.
    """
    from flax.serialization import msgpack_restore

    try:
        tree = msgpack_restore(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # msgpack and NumPy raise many kinds for a damaged file
        raise ConfigError(f"{path} is damaged, or not a file of Flax ({type(error).__name__}: {error}).") from None
    return _parameters(path, tree)


def read_orbax(folder: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads a checkpoint of Orbax into the memory of the host. The results are those of `read_msgpack`."""
    import jax
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder.absolute())
            tree = getattr(metadata, "item_metadata", metadata)
            tree = getattr(tree, "tree", tree)
            restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
            content = checkpointer.restore(folder.absolute(), restore_args=restore)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{folder} is damaged, or not a checkpoint of Orbax ({type(error).__name__}: {reason})."
        ) from None
    return _parameters(folder, content)


def _parameters(path, tree):
    """Returns the arrays of the parameters in a checkpoint, and descriptions of the rest."""
    others: tuple[str, ...] = ()
    for names in _TREES:
        found = _at(tree, names)
        if found:
            others = tuple(f"{key}: a {type(value).__name__}" for key, value in tree.items() if key != names[0])
            tree = found
            break
    while isinstance(tree, dict) and set(tree) == {"params"}:
        tree = tree["params"]
    arrays = dict(_leaves(path, tree))
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
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(path, value, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(tree, (np.ndarray, np.generic, int, float)):
        yield prefix, np.asarray(tree)
    elif tree is not None:
        raise ConfigError(f"{path} holds {prefix!r}, a {type(tree).__name__}, which is not an array.")

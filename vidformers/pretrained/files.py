"""Finding a file of weights and reading its arrays. The content of the file determines its format, not its name."""

import hashlib
import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained import flax_file, torch_file

# The files of weights that a folder can hold, in the order of preference.
_PATTERNS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors",
    "*.npz",
    "pytorch_model.bin",
    "*.pth",
    "*.pyth",
    "*.pt",
    "*.bin",
    "checkpoint",
    "checkpoint_*",
    "*.msgpack",
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class File:
    """The content of a file of weights.

    Attributes:
        arrays: name in the file -> array.
        path: the path of the file, or of the index of several files.
        sha256: the SHA-256 of the digests of the file or files.
        metadata: the content of Hugging Face's config.json and preprocessor_config.json beside the file, or {}.
        revision: the commit of the repository on Hugging Face, or None.
        not_read: descriptions of the other objects in a PyTorch file.
    """

    arrays: dict[str, np.ndarray]
    path: Path
    sha256: str
    metadata: dict = field(default_factory=dict)
    revision: str | None = None
    not_read: tuple[str, ...] = ()


def open_file(source: str) -> File:
    """Reads a file of weights.

    Args:
        source: a file, a folder with one such file, a checkpoint of Orbax, or 'OWNER/NAME' or 'OWNER/NAME@REVISION' on
            Hugging Face. A repository is kept in the cache of huggingface_hub, where it is found without a network.
    Raises:
        ConfigError: the file is missing, is damaged, has an unknown format, or holds numbers that are not finite.
    """
    path, revision = Path(source).expanduser(), None
    if not path.exists():
        if not _REPOSITORY.fullmatch(source) or source.startswith("."):
            raise ConfigError(f"init.weights={source} is neither a file, nor a folder, nor OWNER/NAME on Hugging Face.")
        path, revision = _download(source)
    if path.is_dir():
        path = _choose(path, source)
    arrays, not_read, files = _read(path)
    if not arrays:
        raise ConfigError(f"{path} holds no arrays.")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ConfigError(f"{path}: {name!r} has the type {array.dtype}, which is not a type of weights.")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ConfigError(f"{path}: {name!r} holds numbers that are not finite.")
    return File(arrays, path, _digest(files), _read_metadata(path.parent), revision, not_read)


def _download(source):
    """Returns the folder of a repository in the cache, and its commit."""
    set_by = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
    if os.path.expanduser("~") == "~" and not any(os.environ.get(name) for name in set_by):
        raise ConfigError(
            f"init.weights={source} needs a folder for downloads, and there is no home folder. Set HF_HOME."
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    try:
        patterns = ["*.json", "*.safetensors", "*.npz", "*.bin", "*.pth", "*.pyth"]
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"init.weights={source} is not in the cache of huggingface_hub, and Hugging Face cannot be reached."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"init.weights={source} cannot be downloaded from Hugging Face: {reason}.") from None
    return folder, folder.name  # the cache names the folders of snapshots after their commits


def _choose(folder, source):
    """Returns the file of weights in a folder, or the folder of a checkpoint of Orbax."""
    if not (folder / "run.json").exists() and (checkpoint := flax_file.orbax_folder(folder)):
        return checkpoint
    for pattern in _PATTERNS:
        matches = sorted(folder.glob(pattern))
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ConfigError(
                f"init.weights={source} holds several files of weights, {matches[0].name} and {matches[1].name} among "
                "them: give the path of one."
            )
    if (folder / "run.json").exists():
        raise ConfigError(
            f"init.weights={source} is the folder of a run. Export its weights with --mode=export and name the export."
        )
    raise ConfigError(f"init.weights={source} is a folder that holds no file of weights.")


def _read(path):
    """Returns (arrays, descriptions of other objects in the file, the files that were read)."""
    if path.is_dir():
        return *flax_file.read_orbax(path), sorted(file for file in path.rglob("*") if file.is_file())
    try:
        with open(path, "rb") as file:
            first = file.read(16)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    if path.name.endswith(".index.json"):
        return _read_indexed(path)
    if flax_file.is_msgpack(first):
        return *flax_file.read_msgpack(path), [path]
    if len(first) > 8 and first[8:9] == b"{":
        return _read_safetensors(path), (), [path]
    if first.startswith(b"PK") and _is_npz(path):
        return _read_npz(path), (), [path]
    if first.startswith((b"PK", b"\x80")):
        arrays, not_read = torch_file.read(path)
        return arrays, not_read, [path]
    raise ConfigError(
        f"{path} is not a file of weights: neither safetensors, nor npz, nor a file of torch.save or Flax."
    )


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path} is damaged, or not a file of safetensors: {error}.") from None


def _read_indexed(path):
    """Reads all safetensors files that an index lists."""
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [path.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not an index of files of safetensors.") from None
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        if not file.exists():
            raise ConfigError(f"{path} names {file.name}, which is missing.")
        arrays |= _read_safetensors(file)
    return arrays, (), files


def _is_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return bool(names) and all(name.endswith(".npy") for name in names)
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}).") from None


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a damaged archive
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ConfigError(f"{path} is damaged, or holds pickled objects, which are not read: {reason}.") from None


def _digest(files):
    """Returns the SHA-256 of the digests of the files."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_metadata(folder):
    metadata: dict = {}
    for name in ("config.json", "preprocessor_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        metadata |= content if isinstance(content, dict) else {}
    return metadata

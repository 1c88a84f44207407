"""Finding a file of weights and reading its arrays, whatever its format: the content tells, not the name."""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained import torch_file

# What a folder may hold, in the order of preference.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors",
    "*.npz",
    "pytorch_model.bin",
    "*.pth",
    "*.pyth",
    "*.pt",
    "*.bin",
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class File:
    """The arrays of a file of weights, and what is written beside them.

    Attributes:
      arrays: by the names in the file.
      path: of the file, or of the index of several.
      sha256: of the file or files.
      about: the content of config.json and preprocessor_config.json beside it, of Hugging Face, where there are such.
      revision: commit of the repository it came from, where it did.
      others: what else a file of PyTorch holds, which was not read.
    """

    arrays: dict[str, np.ndarray]
    path: Path
    sha256: str
    about: dict = field(default_factory=dict)
    revision: str | None = None
    others: tuple[str, ...] = ()


def open_file(source: str) -> File:
    """The weights at `source`: a file, a folder that holds one, or 'OWNER/NAME' or 'OWNER/NAME@REVISION' on Hugging
    Face, which is kept in the cache of huggingface_hub and found there without a network.

    Raises:
      ConfigError: it is not there, damaged, of no known format, or holds numbers that are not finite.
    """
    path, revision = Path(source).expanduser(), None
    if not path.exists():
        if not _REPOSITORY.fullmatch(source) or source.startswith("."):
            raise ConfigError(f"init.weights={source} is neither a file, nor a folder, nor OWNER/NAME on Hugging Face.")
        path, revision = _download(source)
    if path.is_dir():
        path = _choose(path, source)
    arrays, others, files = _read(path)
    if not arrays:
        raise ConfigError(f"{path} holds no arrays.")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ConfigError(f"{path}: {name!r} is of the type {array.dtype}, which no weights are.")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ConfigError(f"{path}: {name!r} holds numbers that are not finite.")
    return File(arrays, path, _digest(files), _about(path.parent), revision, others)


def _download(source):
    """The folder of a repository in the cache, and its commit."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    try:
        names = ["*.json", "*.safetensors", "*.npz", "*.bin", "*.pth", "*.pyth"]
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=names))
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"init.weights={source} is not in the cache of huggingface_hub, and Hugging Face cannot be reached."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"init.weights={source} cannot be had from Hugging Face: {reason}.") from None
    return folder, folder.name  # the cache names the folders of snapshots after their commits


def _choose(folder, source):
    for pattern in _NAMES:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"init.weights={source} holds several files of weights, {found[0].name} and "
                f"{found[1].name} among them: name one."
            )
    if (folder / "run.json").exists():
        raise ConfigError(f"init.weights={source} is the folder of a run: --mode=export makes weights of it.")
    raise ConfigError(f"init.weights={source} is a folder that holds no file of weights.")


def _read(path):
    """(arrays, what else there is, the files that were read)."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    if len(head) > 8 and head[8:9] == b"{":
        return _read_safetensors(path), (), [path]
    if head.startswith(b"PK") and _is_npz(path):
        return _read_npz(path), (), [path]
    if head.startswith((b"PK", b"\x80")):
        arrays, others = torch_file.read(path)
        return arrays, others, [path]
    raise ConfigError(f"{path} is in no format of weights: neither safetensors, nor npz, nor a file of torch.save.")


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  (NumPy learns of bfloat16)
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path} is damaged, or no file of safetensors: {error}.") from None


def _read_parts(path):
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [path.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no index of files of safetensors.") from None
    arrays = {}
    for part in parts:
        if not part.exists():
            raise ConfigError(f"{path} names {part.name}, which is not there.")
        arrays |= _read_safetensors(part)
    return arrays, (), parts


def _is_npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return bool(names) and all(name.endswith(".npy") for name in names)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{path} is damaged: {error}.") from None


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged, or holds pickled objects, which are not read: {error}.") from None


def _digest(files):
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _about(folder):
    about = {}
    for name in ("config.json", "preprocessor_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        about |= content if isinstance(content, dict) else {}
    return about

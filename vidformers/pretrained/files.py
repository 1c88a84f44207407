"""Finding a file of weights and reading its arrays. The content of the file determines its format, not its name."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from input_pipeline.json_files import JsonError, open_regular, read_json
from input_pipeline.text import one_line
from vidformers.errors import ConfigError
from vidformers.pretrained import flax_file, npz_file, orbax_file, safetensors_file, torch_file
from vidformers.pretrained.limits import LONGEST_NAME

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
    if not os.path.exists(path):
        if not _REPOSITORY.fullmatch(source) or source.startswith("."):
            raise ConfigError(f"init.weights={source} is neither a file, nor a folder, nor OWNER/NAME on Hugging Face.")
        path, revision = _download(source)
    if path.is_dir():
        path = _choose(path, source)
    arrays, not_read, files = _read(path)
    check_arrays(path, arrays)
    metadata = _read_metadata(path.parent)
    _check_digest(path, metadata, files[0])
    return File(arrays, path, digest_of(files), metadata, revision, not_read)


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
            f"init.weights={source} is neither a path on this machine nor in the cache of huggingface_hub, and Hugging "
            "Face cannot be reached."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"init.weights={source} cannot be downloaded from Hugging Face: {one_line(error)}.") from None
    return folder, folder.name  # the cache names the folders of snapshots after their commits


def _choose(folder, source):
    """Returns the file of weights in a folder, or the folder of a checkpoint of Orbax."""
    if not (folder / "run.json").exists() and (checkpoint := orbax_file.orbax_folder(folder)):
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
        if not (folder := orbax_file.orbax_folder(path)):
            raise ConfigError(f"{path} is a folder, and not a checkpoint of Orbax. Give the path of a file of weights.")
        return orbax_file.read(folder)
    try:
        with open_regular(path) as file:
            first = file.read(16)
            zip_is_npz = first.startswith(b"PK") and npz_file.is_npz(path, file)
            if zip_is_npz:
                return npz_file.read(path, file), (), [path]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    if path.name.endswith(".index.json"):
        arrays, files = safetensors_file.read_indexed(path)
        return arrays, (), files
    if flax_file.is_msgpack(first):
        return *flax_file.read_msgpack(path), [path]
    if len(first) > 8 and first[8:9] == b"{":
        return safetensors_file.read(path), (), [path]
    if first.startswith((b"PK", b"\x80")):
        arrays, not_read = torch_file.read(path)
        return arrays, not_read, [path]
    raise ConfigError(
        f"{path} is not a file of weights: neither safetensors, nor npz, nor a file of torch.save or Flax."
    )


def check_arrays(path, arrays):
    """Checks the names and the types of arrays, and that their numbers are finite."""
    if not arrays:
        raise ConfigError(f"{path} holds no arrays.")
    for name, array in arrays.items():
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"{path} holds an array with a name of {len(name)} characters.")
        is_small = array.dtype.name.startswith(("bfloat16", "float8_"))
        if array.dtype.kind not in "fiub" and not is_small:
            raise ConfigError(f"{path}: {name!r} has the type {array.dtype}, which is not a type of weights.")
        with np.errstate(over="ignore"):  # a number that is too large becomes infinite
            is_finite = array.dtype.kind in "iub" or np.isfinite(array.astype(np.float32, copy=False)).all()
        if not is_finite:
            raise ConfigError(f"{path}: {name!r} holds numbers that are not finite.")


def digest_of(files: list[Path]) -> str:
    """Returns the SHA-256 of the digests of files."""
    return hashlib.sha256(b"".join(map(_digest, files))).hexdigest()


def _digest(path: Path) -> bytes:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_digest(path, metadata, file) -> None:
    """Refuses a file of an export that is not the one of which config.json has the SHA-256."""
    expected = metadata.get("sha256")
    if metadata.get("format") == "vidformers" and isinstance(expected, dict) and path.name in expected:
        if expected[path.name] != _digest(file).hex():
            raise ConfigError(f"{path} is not the file that was exported: its SHA-256 differs. Copy the export again.")


def _read_metadata(folder):
    """Returns the content of Hugging Face's files beside the weights. Raises ConfigError if one is damaged."""
    metadata: dict = {}
    for name in ("config.json", "preprocessor_config.json"):
        path = folder / name
        try:
            metadata |= read_json(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{path}, which describes the weights, cannot be read: {error.strerror}.") from None
        except JsonError as error:
            raise ConfigError(f"{path}, which describes the weights, {error}. Repair it or remove it.") from None
    return metadata

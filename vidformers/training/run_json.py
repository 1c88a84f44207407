"""The file `run.json` of a run: its config, data, steps, versions and devices, under a checksum.

This module imports no JAX: `main.py` reads the file before the imports that take seconds.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from input_pipeline.files import write_text
from input_pipeline.json_files import JsonError, check_kind, read_json
from vidformers.errors import ConfigError

_CHECKSUM = "checksum"  # the entry for the checksum of all others; earlier versions wrote none
_SECTIONS = {"model", "data", "init", "train", "optim", "eval", "mesh", "checkpoint", "own"}


def read_run_json(workdir: str | os.PathLike) -> dict[str, Any]:
    """Returns the contents of `run.json` in the folder of a run. Its sections are dicts, those of the config too.

    The file may be edited if its entry `checksum` is removed. Files of earlier versions have no such entry.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = Path(workdir) / "run.json"
    try:
        run = read_json(path, {"config": {"model": dict, "data": dict}, "data": dict})
        config, model = run["config"], run["config"]["model"]
        check_kind(config, dict.fromkeys(config.keys() & _SECTIONS, dict), "config")
        check_kind(model, dict.fromkeys(model.keys() & {"name"}, str), "config.model")
        if _CHECKSUM in run and run.pop(_CHECKSUM) != _checksum(run):
            raise JsonError(f"differs from its checksum. If you have edited it, remove its entry {_CHECKSUM!r}")
        return run
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{workdir} holds no run: there is no {path}. Set --workdir to the folder of a run."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Fix this and run the same command again."
        ) from None
    except JsonError as error:
        raise ConfigError(f"{path} is damaged: it {error}. Restore it from a copy, or give another workdir.") from None


def replace_run_json(workdir: Path, run: dict) -> None:
    """Writes `run.json` with its checksum."""
    content = {name: value for name, value in run.items() if name != _CHECKSUM}
    content[_CHECKSUM] = _checksum(content)
    write_text(workdir / "run.json", json.dumps(content, indent=1) + "\n")


def _checksum(content: dict) -> int:
    """Returns the CRC-32 of the contents of `run.json` without the entry of the checksum."""
    return zlib.crc32(json.dumps(content).encode())

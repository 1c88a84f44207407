"""Loads configs from their files and overrides their fields from the command line.

This module is not part of vidformers, because the commands of `input_pipeline` use it too.
"""

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict, FieldReference


class FlagError(ValueError):
    """A mistake in a flag: --config and its file, a field --config.SECTION.FIELD, or another flag of the program.

    The message names the flag.
    """


def read_flags(argv: Sequence[str], defaults: dict[str, str | None]) -> tuple[ConfigDict, dict[str, str | None]]:
    """Reads `--config=FILE[:NAME] [--config.section.field=value ...] [--name=value ...]`.

    Args:
        argv: the arguments without the name of the program.
        defaults: the other flags of the program, with their defaults.
    Returns:
        The config with its overrides, and the flags of `defaults` and 'config' with the given values.
    Raises:
        FlagError: an unknown flag, a missing --config, or an error of `load` or `override`.
    """
    flags: dict[str, str | None] = {"config": None, **defaults}
    fields = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        require(
            bool(equals) and name.startswith("--"),
            f"{argument!r} is not a flag. Write --name=value; --help shows the flags.",
        )
        if name.startswith("--config."):
            fields.append((name.removeprefix("--config."), value))
        else:
            require(name.removeprefix("--") in flags, f"{name} is not a flag; --help shows them.")
            flags[name.removeprefix("--")] = value
    require(flags["config"] is not None, "--config=FILE is missing. --help shows its form.")
    config = load(flags["config"])
    for path, value in fields:
        override(config, path, value)
    return config, flags


def load(name: str) -> ConfigDict:
    """Returns `get_config()` of FILE.py, or `get_config(NAME)`.

    Args:
        name: FILE.py or FILE.py:NAME. The file decides what NAME is: a model in configs/demo.py, and a config in the
            files of data sets, such as configs/kinetics400.py.
    Raises:
        FlagError: there is no such file, it has no `get_config`, or `get_config` refuses NAME.
    """
    file, colon, argument = name.partition(":")
    require(Path(file).is_file(), f"--config={name}: the file {file} does not exist.")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    require(spec is not None, f"--config={name}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FlagError(f"--config={name}: {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    require(hasattr(module, "get_config"), f"--config={name}: {file} defines no get_config.")
    takes_argument = module.get_config.__code__.co_argcount > 0
    require(
        takes_argument or not colon,
        f"--config={name}: {file} takes no name after a colon. Leave out the colon and what follows.",
    )
    try:
        return module.get_config(argument) if colon else module.get_config()
    except Exception as error:
        raise FlagError(f"--config={name}: {error}.") from error


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets `section.field` to the value that is written as `text`.

    Raises:
        FlagError: the field does not exist or is the name of the model, or the value is not of the field's type.
    """
    known = [name for name in config if not isinstance(config[name], ConfigDict)]
    known += [f"{name}.{field}" for name in config if isinstance(config[name], ConfigDict) for field in config[name]]
    if path not in known:
        similar = difflib.get_close_matches(path, known, n=1)
        question = f"; did you mean --config.{similar[0]}?" if similar else "."
        raise FlagError(f"--config.{path} is not a field of this config{question}")
    require(
        path != "model.name", "--config.model.name cannot be overridden. Choose another config file, or FILE.py:NAME."
    )
    section_name, _, field = path.rpartition(".")
    section = config[section_name] if section_name else config
    kind = section.get_type(field)
    # A placeholder is a reference, and so are the fields that the data and the model share.
    is_reference = isinstance(dict(section.items(preserve_field_references=True))[field], FieldReference)
    try:
        section[field] = _read(text, kind, is_reference)
    except (ValueError, SyntaxError, TypeError):
        raise FlagError(f"--config.{path}={text} is not of type {kind.__name__}.") from None


def _read(text: str, kind: type, optional: bool):
    """Returns the value that `text` writes. 'none' is None for an optional field."""
    if kind is str:
        return None if optional and text.lower() == "none" else text
    value = ast.literal_eval(text.capitalize() if text.lower() in ("true", "false", "none") else text)
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if type(value) is not kind and not (value is None and optional):
        raise ValueError
    return value


def require(condition: bool, sentence: str) -> None:
    """Raises `FlagError(sentence)` unless `condition` holds."""
    if not condition:
        raise FlagError(sentence)

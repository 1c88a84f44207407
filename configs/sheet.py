"""Experiment sheets: loading one from its file, and overriding its fields from the command line.

Here and not in the library, so that the commands of `input_pipeline` read sheets without it.
"""

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict, FieldReference


class SheetError(ValueError):
    """A sheet, a field or a flag that cannot be; its message is one sentence that names it."""


def read_flags(argv: Sequence[str], own: dict[str, str | None]) -> tuple[ConfigDict, dict[str, str | None]]:
    """The config and the other flags of `--config=FILE[:MODEL] [--config.section.field=value ...] [--name=value ...]`.

    Args:
        argv: without the program's name.
        own: the other flags that the program takes, with their defaults.
    Returns:
        The config, overridden; `own` and 'config', with the values given.
    Raises:
        SheetError: a flag that there is not, no --config, or what `load` and `override` refuse.
    """
    flags, fields = {"config": None, **own}, []
    for argument in argv:
        name, equals, value = argument.partition("=")
        require(
            bool(equals) and name.startswith("--"),
            f"{argument!r} is not understood: write --name=value, as --help shows.",
        )
        if name.startswith("--config."):
            fields.append((name.removeprefix("--config."), value))
        else:
            require(name.removeprefix("--") in flags, f"{name} is not a flag; --help shows them.")
            flags[name.removeprefix("--")] = value
    require(flags["config"] is not None, "--config=FILE is missing; --help shows how to write it.")
    config = load(flags["config"])
    for path, value in fields:
        override(config, path, value)
    return config, flags


def load(name: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:MODEL`, from the file's `get_config`.

    Raises:
        SheetError: no such file, no `get_config` in it, or a model that it does not offer.
    """
    file, colon, model = name.partition(":")
    require(Path(file).is_file(), f"--config={name}: there is no file {file}.")
    spec = importlib.util.spec_from_file_location("experiment_sheet", file)
    require(spec is not None, f"--config={name}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SheetError(f"--config={name}: {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    require(hasattr(module, "get_config"), f"--config={name}: {file} defines no get_config.")
    takes_model = module.get_config.__code__.co_argcount > 0
    require(takes_model or not colon, f"--config={name}: {file} holds one model and takes none after the colon.")
    try:
        return module.get_config(model) if colon else module.get_config()
    except Exception as error:
        raise SheetError(f"--config={name}: {error}.") from error


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets `section.field` to the value written as `text`, of the type the field has.

    Raises:
        SheetError: no such field, the model's name, or a value of another type.
    """
    known = [
        f"{section}.{field}"
        for section in config
        if isinstance(config[section], ConfigDict)
        for field in config[section]
    ] + [name for name in config if not isinstance(config[name], ConfigDict)]
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1)
        raise SheetError(
            f"--config.{path} is not a field of this config" + (f"; did you mean --config.{near[0]}?" if near else ".")
        )
    require(path != "model.name", "--config.model.name is not overridden: choose another config, or FILE.py:MODEL.")
    section, _, field = path.rpartition(".")
    section = config[section] if section else config
    kind = section.get_type(field)
    optional = isinstance(dict(section.items(preserve_field_references=True))[field], FieldReference)  # placeholder
    try:
        section[field] = _read(text, kind, optional)
    except (ValueError, SyntaxError, TypeError):
        raise SheetError(f"--config.{path}={text} is not of type {kind.__name__}.") from None


def _read(text: str, kind: type, optional: bool):
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
    """Raises `SheetError(sentence)` unless `condition` holds."""
    if not condition:
        raise SheetError(sentence)

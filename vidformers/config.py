"""Experiment sheets: loading one from its file, and overriding its fields from the command line."""

import ast
import difflib
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict, FieldReference

from vidformers.errors import ConfigError, require


def load(name: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:MODEL`, from the file's `get_config`.

    Raises:
        ConfigError: no such file, no `get_config` in it, or a model that it does not offer.
    """
    file, colon, model = name.partition(":")
    require(Path(file).is_file(), f"--config={name}: there is no file {file}.")
    spec = importlib.util.spec_from_file_location("experiment_sheet", file)
    require(spec is not None, f"--config={name}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--config={name}: {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    require(hasattr(module, "get_config"), f"--config={name}: {file} defines no get_config.")
    takes_model = module.get_config.__code__.co_argcount > 0
    require(takes_model or not colon, f"--config={name}: {file} holds one model and takes none after the colon.")
    try:
        return module.get_config(model) if colon else module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={name}: {error}.") from error


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets `section.field` to the value written as `text`, of the type the field has.

    Raises:
        ConfigError: no such field, the model's name, or a value of another type.
    """
    known = [f"{section}.{field}" for section in config if isinstance(config[section], ConfigDict)
             for field in config[section]] + [name for name in config if not isinstance(config[name], ConfigDict)]
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1)
        raise ConfigError(f"--config.{path} is not a field of this config"
                          + (f"; did you mean --config.{near[0]}?" if near else "."))
    require(path != "model.name", "--config.model.name is not overridden: choose another config, or FILE.py:MODEL.")
    section, _, field = path.rpartition(".")
    section = config[section] if section else config
    kind = section.get_type(field)
    optional = isinstance(dict(section.items(preserve_field_references=True))[field], FieldReference)  # placeholder
    try:
        section[field] = _read(text, kind, optional)
    except (ValueError, SyntaxError, TypeError):
        raise ConfigError(f"--config.{path}={text} is not of type {kind.__name__}.") from None


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

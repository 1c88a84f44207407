"""Loads configs from their files and overrides their fields from the command line.

This module is not part of vidformers, because the commands of `input_pipeline` use it too.
"""

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from input_pipeline import layouts
from input_pipeline.errors import DataError
from input_pipeline.json_files import with_tuples
from input_pipeline.paths import is_stream, local_path
from input_pipeline.sizes import MAX_SIZE, default_short_side, scaled_short_side

_PATH_FLAGS = ("config", "workdir", "out", "video", "features", "keys", "beside")
_PATH_FIELDS = ("data.root", "data.train", "data.val", "data.test", "data.exclude", "data.classes", "init.weights")
_SIZE = ("data.size", "model.image_size")  # two names of one field
_FOLLOW_SIZE = ("data.short_side", "data.test_short_side")
_MAX_SHOWN = 100  # characters of a value in a message


class FlagError(ValueError):
    """A mistake in a flag: --config and its file, a field --config.SECTION.FIELD, or another flag of the program.

    The message names the flag.
    """


def read_flags(argv: Sequence[str], defaults: dict[str, str | None]) -> tuple[ConfigDict, dict[str, str | None]]:
    """Reads the flags of a program that needs a config file.

    Args:
        argv, defaults: those of `read_arguments`.
    Returns:
        The config with its overrides, and the flags of `defaults` and 'config' with the given values.
    Raises:
        FlagError: an error of `read_arguments`, `load` or `override`, or a missing --config.
    """
    flags, fields = read_arguments(argv, defaults)
    require(flags["config"] is not None, "--config=FILE is missing. --help shows its form.")
    config = load(flags["config"])
    override_all(config, fields)
    return config, flags


def read_arguments(
    argv: Sequence[str], defaults: dict[str, str | None]
) -> tuple[dict[str, str | None], dict[str, str]]:
    """Reads `--config=FILE[:NAME] [--config.section.field=value ...] [--name=value ...]`.

    `--name value` is the same as `--name=value`. If a flag or a field is given twice, the last one holds.

    Args:
        argv: the arguments without the name of the program.
        defaults: the other flags of the program, with their defaults.
    Returns:
        The flags of `defaults` and 'config', None unless it is given, and the texts of the given fields.
    Raises:
        FlagError: an unknown flag, a flag without a value, or a flag that should be a path and is none.
    """
    flags: dict[str, str | None] = {"config": None, **defaults}
    fields: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        require(name.startswith("--"), f"{_cut(argument)!r} is not a flag. Write --name=value; --help shows the flags.")
        flag = name.removeprefix("--")
        if flag not in flags and not flag.startswith("config."):
            question = f"; did you mean --config.{_cut(flag)}?"
            end = question if "." in flag else _similar(flag, list(flags), "--", "; --help shows them.")
            raise FlagError(f"{_cut(name)} is not a flag{end}")
        if not equals:
            value = next(arguments, "")
            require(value != "" and not value.startswith("--"), f"{_cut(name)} has no value. Write {_cut(name)}=VALUE.")
        if flag.startswith("config."):
            fields[flag.removeprefix("config.")] = value
        else:
            require(value != "", f"{name}= has no value. Write {name}=VALUE, or leave the flag out.")
            is_path = flag in _PATH_FLAGS and not (flag == "video" and is_stream(value))
            flags[flag] = flag_path(name, value) if is_path else value
    return flags, fields


def flag_path(name: str, value: str) -> str:
    """Returns the path that a flag holds. Raises FlagError as `input_pipeline.paths.local_path` DataError."""
    try:
        return local_path(name, value)
    except DataError as error:
        raise FlagError(str(error)) from None


def load(name: str) -> ConfigDict:
    """Returns `get_config()` of FILE.py, or `get_config(NAME)`.

    Args:
        name: FILE.py or FILE.py:NAME. The file decides what NAME is: a model in configs/demo.py, and a config in the
            files of data sets, such as configs/kinetics400.py.
    Raises:
        FlagError: there is no such file, it has no `get_config`, or `get_config` refuses NAME or returns something else
            than a config with the fields of `configs.base`.
    """
    file, colon, argument = name.partition(":")
    if not Path(file).is_file():
        reason = "is not a file" if Path(file).exists() else "does not exist"
        folder = Path(file).parent
        others = [str(path) for path in folder.glob("*.py")] if folder.is_dir() else []
        advice = _similar(file, others, otherwise=". Give a file of configs/, or one like them.")
        raise FlagError(f"--config={name}: {file} {reason}{advice}")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    require(spec is not None, f"--config={name}: {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise FlagError(f"--config={name}: {file} cannot be loaded: {type(error).__name__}: {error}.") from error
    function = getattr(module, "get_config", None)
    require(callable(function), f"--config={name}: {file} defines no function get_config.")
    takes_argument = bool(inspect.signature(function).parameters)
    require(
        takes_argument or not colon,
        f"--config={name}: {file} takes no name after a colon. Leave out the colon and what follows.",
    )
    try:
        config = function(argument) if colon else function()
    except Exception as error:
        raise FlagError(f"--config={name}: {str(error).rstrip('.')}.") from error
    require(
        isinstance(config, ConfigDict), f"--config={name}: get_config of {file} must return the config that it makes."
    )
    _check_names(name, config)
    return config


def from_run(stored: Mapping[str, Any], workdir: str) -> ConfigDict:
    """Returns the config of a run, of which fields can be overridden as of one from a file.

    Args:
        stored: the entry `config` of `run.json`, with the defaults of the fields that its version did not have.
        workdir: the folder of the run, for messages.
    Raises:
        FlagError: the config has a section or field that this version does not have, or a value of another type.
    """
    from configs.base import base

    advice = "Use the version of vidformers that wrote the run, or restore the file from a copy."
    try:
        config = base(stored["model"].get("name"))
    except ValueError:
        raise FlagError(f"{workdir}/run.json names no model that this version has. {advice}") from None
    sections = {name: value for name, value in stored.items() if isinstance(value, Mapping)}
    fields = [(config, name, value) for name, value in stored.items() if name not in sections]
    for section, values in sections.items():
        require(section in config, f"{workdir}/run.json has a section {section}, which this version lacks. {advice}")
        fields += [(config[section], name, value) for name, value in values.items()]
    for target, name, value in fields:
        require(name in target, f"{workdir}/run.json has the field {name}, which this version lacks. {advice}")
        try:
            target[name] = with_tuples(value)
        except (TypeError, ValueError):
            raise FlagError(f"{workdir}/run.json has {name}={_cut(repr(value))}. {advice}") from None
    return config


def _check_names(file: str, config: ConfigDict) -> None:
    """Raises FlagError unless a config has the sections and fields of `configs.base`, and no others."""
    from configs.base import base

    try:
        expected = _field_names(base(config.model.name))
    except (AttributeError, ValueError) as error:
        raise FlagError(f"--config={file}: its model cannot be found: {str(error).rstrip('.')}.") from None
    names = _field_names(config)
    for name in names:
        require(name in expected, f"--config={file}: {name} is not a field of a config{_similar(name, expected)}")
    missing = next((name for name in expected if name not in names), None)
    require(missing is None, f"--config={file} lacks the field {missing}. Start from base of configs/base.py.")


def _field_names(config: ConfigDict) -> list[str]:
    """Returns the names of the fields of a config, such as 'seed' and 'optim.lr'."""
    names = [name for name in config if not isinstance(config[name], ConfigDict)]
    return names + [
        f"{name}.{field}" for name in config if isinstance(config[name], ConfigDict) for field in config[name]
    ]


def _similar(name: str, known: Sequence[str], prefix: str = "", otherwise: str = ".") -> str:
    """Returns the end of the sentence on an unknown name: whether a similar one was meant, or else `otherwise`."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{similar[0]}?" if similar else otherwise


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets `section.field` to the value that is written as `text`.

    Raises:
        FlagError: the field does not exist or is the name of the model, or the value is not of the field's type.
    """
    known, shown = _field_names(config), _cut(path)
    require(path in known, f"--config.{shown} is not a field of this config{_similar(shown, known, '--config.')}")
    require(
        path != "model.name", "--config.model.name cannot be overridden. Choose another config file, or FILE.py:NAME."
    )
    section_name, _, field = path.rpartition(".")
    section = config[section_name] if section_name else config
    kind = section.get_type(field)
    # A placeholder is a reference, and so are the fields that the data and the model share.
    is_reference = isinstance(dict(section.items(preserve_field_references=True))[field], FieldReference)
    size = config.data.size if path in _SIZE else None
    try:
        section[field] = _read(text, kind, is_reference)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError):
        raise FlagError(f"--config.{path}={_cut(text)} is not of type {kind.__name__}.") from None
    # Not fields of the config, so that runs, exports and flags do not change.
    object.__setattr__(config, "_given", given(config) | {path})
    object.__setattr__(config, "_derived", derived(config) - {path})
    if size is not None:
        _scale_short_sides(config, size)


def override_all(config: ConfigDict, fields: Mapping[str, str]) -> None:
    """Sets fields to the values that are written as text, see `override`, and those that follow from other fields.

    Raises:
        FlagError: an error of `override`, or a field that should be a path of this machine and is none.
    """
    for path, value in fields.items():
        override(config, path, value)
    for path in _PATH_FIELDS:
        section, _, field = path.partition(".")
        if config[section][field] is not None:
            config[section][field] = flag_path(f"--config.{path}", config[section][field])
    _set_short_side(config)


def counts_classes(source: str, names: Collection[str]) -> bool:
    """Returns whether the number of classes is that of the data: of own data and of shards, unless it was given.

    Args:
        source: data.source.
        names: the fields that the command line sets.
    """
    return source in ("auto", "shards") and not {"data.num_classes", "model.num_classes"}.intersection(names)


def count_classes(config: ConfigDict) -> None:
    """Sets data.num_classes, unless it was given, from own data (data.source=auto) or shards.

    Raises:
        DataError: the training list has a mistake.
    """
    if counts_classes(config.data.source, given(config)):
        config.data.num_classes = layouts.count_classes(config.data.to_dict())


def given(config: ConfigDict) -> frozenset[str]:
    """Returns the fields that `override` has set, such as 'data.size'."""
    return config.__dict__.get("_given", frozenset())


def derived(config: ConfigDict) -> frozenset[str]:
    """Returns the fields whose values follow another field that `override` has set, or have no value of their own."""
    return config.__dict__.get("_derived", frozenset())


def _derive(config: ConfigDict, field: str, value) -> None:
    config.data[field.removeprefix("data.")] = value
    object.__setattr__(config, "_derived", derived(config) | {field})


def _scale_short_sides(config: ConfigDict, before: int) -> None:
    """Scales the shorter sides, unless they were given, from crops of `before` pixels to those of data.size."""
    for field in _FOLLOW_SIZE:
        side = config.data[field.removeprefix("data.")]
        if side is not None and field not in given(config) and _has_size(config):
            _derive(config, field, scaled_short_side(side, before, config.data.size))


def _set_short_side(config: ConfigDict) -> None:
    """Sets data.short_side, if it is None, to its default for data.size."""
    if config.data.short_side is None and _has_size(config):
        _derive(config, "data.short_side", default_short_side(config.data.size))


def _has_size(config: ConfigDict) -> bool:
    """Returns whether data.size is one that is not refused when its section is read."""
    return config.data.size is not None and 0 < config.data.size <= MAX_SIZE


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

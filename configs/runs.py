"""The config of a command: that of a file, or that of the run in the workdir, which a file is compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.help import WAYS_ON
from configs.loading import counts_classes, derived, from_run, given, load, override_all, require
from input_pipeline.layouts import count_classes

# Modes that use the parameters of a run, and so its config. The others take that of a file as it is.
READS_RUN = ("eval", "predict", "explain", "export")
_MOST_SHOWN = 6  # fields in a sentence


class CommandConfig(NamedTuple):
    """The config of a command.

    Attributes:
        config: as nested dicts.
        given: the fields that the command line sets, such as 'data.size'.
        notes: sentences for the user on fields that differ from those of the run.
    """

    config: dict[str, Any]
    given: frozenset[str]
    notes: tuple[str, ...] = ()


def command_config(file: str | None, workdir: str, mode: str, fields: Mapping[str, str]) -> CommandConfig:
    """Returns the config of a command.

    Without a file, it is that of the run in `workdir`. With a file, `READS_RUN` take that of the run as well, and
    compare: the model must be the same. In both cases `fields` override those of the run. If there is no run, and in
    the other modes, the config is that of the file.

    Args:
        file: the flag --config, or None.
        workdir: the folder of the run, which need not exist if there is a file.
        mode: the flag --mode.
        fields: the texts of fields, from the flags --config.SECTION.FIELD.
    Raises:
        FlagError: the file or a field is wrong, or there is neither a file nor a run.
        ConfigError: `run.json` is damaged, or the model is not that of the run.
    """
    has_run = (Path(workdir) / "run.json").exists()
    require(
        has_run or file is not None,
        f"--workdir={workdir} holds no run: there is no {workdir}/run.json. Set --workdir to the folder of a run, or "
        "start a run with --config=FILE.",
    )
    sheet = None
    if file is not None:
        sheet = load(file)
        override_all(sheet, fields)
        if not has_run or mode not in READS_RUN and not (mode == "train" and _is_derived(sheet)):
            return _of_file(sheet, workdir)
    return _of_run(workdir, mode, fields, sheet, file)


def with_own_classes(config: dict[str, Any], names: frozenset[str], workdir: str) -> dict[str, Any]:
    """Returns a config with the number of classes that own data or shards have, or that their run has.

    Args:
        config: the config as nested dicts.
        names: the fields that the command line sets. A number of classes that is given is kept.
        workdir: the folder of the run, which need not exist.
    Raises:
        ConfigError: `run.json` is damaged.
        DataError: the training list has a mistake.
    """
    from vidformers.training.run_json import read_run_json

    data = config["data"]
    if not counts_classes(data["source"], names):
        return config
    if (Path(workdir) / "run.json").exists():
        count = read_run_json(workdir)["config"]["data"].get("num_classes", data["num_classes"])
    else:
        count = count_classes(data)
    sections = {name: config[name] | {"num_classes": count} for name in ("data", "model")}
    return config | sections


def ways_on(file: str, config: Mapping[str, Any], names: frozenset[str]) -> str | None:
    """Returns a page with commands that train, if a config names no data and the current folder has none, or None.

    Args:
        file: the flag --config.
        config: the config as nested dicts.
        names: the fields that the command line sets.
    """
    data, fields = config["data"], ("data.root", "data.train", "data.val", "data.source")
    is_default = data["source"] in ("auto", "csv") and data["root"] == "." and data["train"] is data["val"] is None
    if not is_default or names.intersection(fields) or Path("train.csv").exists():
        return None
    name = Path(file.partition(":")[0]).stem
    is_published = (Path(__file__).parent / f"{name}.py").exists() and "_" in name  # and so not one that sets data
    return WAYS_ON.format(file=file, model=config["model"]["name"], name=name if is_published else "mevit_b16")


def _is_derived(sheet: ConfigDict) -> bool:
    """Returns whether fields of a file are derived once, at the start of a run: those of the run hold from then on."""
    return "own" in sheet and sheet.own.minutes is not None


def _of_file(sheet: ConfigDict, workdir: str) -> CommandConfig:
    from vidformers.training.derived import keep_derived

    return CommandConfig(keep_derived(sheet.to_dict(), workdir, derived(sheet)), given(sheet))


def _of_run(
    workdir: str, mode: str, fields: Mapping[str, str], sheet: ConfigDict | None, file: str | None
) -> CommandConfig:
    from vidformers.training.run_json import read_run_json
    from vidformers.training.workdir import require_same_model, with_default_sections

    stored = with_default_sections(read_run_json(workdir)["config"])
    config = from_run(stored, workdir)
    before = config.to_dict()
    override_all(config, fields)
    now, notes = config.to_dict(), []
    if sheet is not None:
        require_same_model(workdir, stored["model"], _model_of(sheet, stored["model"]))
    if mode in READS_RUN:
        require_same_model(workdir, stored["model"], now["model"])
        if sheet is not None and not _is_derived(sheet):
            notes += _left_out(before, sheet.to_dict(), given(config), workdir, file)
        notes += _taken(before, now, given(config))
        if "model.backend" not in given(config):  # the run may have been trained on another kind of device
            now["model"]["backend"] = "auto"
    return CommandConfig(now, given(config), tuple(notes))


def _model_of(sheet: ConfigDict, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `model` of a file, with the fields of the run that are derived or follow from the data."""
    if _is_derived(sheet):
        return {**stored, "name": sheet.model.name}
    is_counted = counts_classes(sheet.data.source, given(sheet))
    return sheet.model.to_dict() | ({"num_classes": stored["num_classes"]} if is_counted else {})


def _taken(before: Mapping, now: Mapping, names: frozenset[str]) -> list[str]:
    """Returns the sentence on the given fields of `data` and `eval` whose values are not those of the run, or none."""
    taken = [f"{name} is {new!r} (was {old!r})" for name, old, new in _differences(before, now) if name in names]
    return [f"Fields that are given in place of those of the run: {', '.join(taken)}."] if taken else []


def _left_out(before: Mapping, sheet: Mapping, names: frozenset[str], workdir: str, file: str | None) -> list[str]:
    """Returns the sentence on fields of `data` and `eval` in which the run and a file differ, or none."""
    fields = [f"{name}={old!r}" for name, old, _ in _differences(before, sheet) if name not in names]
    more = f" and {len(fields) - _MOST_SHOWN} more" if len(fields) > _MOST_SHOWN else ""
    shown = ", ".join(fields[:_MOST_SHOWN]) + more
    return [f"Fields of the run in {workdir} hold, where --config={file} has others: {shown}."] if fields else []


def _differences(before: Mapping, now: Mapping) -> list[tuple[str, Any, Any]]:
    """Returns (field, value before, value now) of the fields of `data` and `eval` that differ."""
    return [
        (f"{section}.{name}", before[section][name], value)
        for section in ("data", "eval")
        for name, value in now[section].items()
        if before[section][name] != value
    ]

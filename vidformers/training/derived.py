"""Fields of a config whose values follow other fields: a run that is continued keeps the values that it has."""

import os
from collections.abc import Collection
from typing import Any

from input_pipeline.json_files import with_tuples
from vidformers.training.run_json import read_run_json


def keep_derived(config: dict[str, Any], workdir, derived: Collection[str]) -> dict[str, Any]:
    """Returns the config with the values of the run in `workdir` for the `derived` fields of the section `data`.

    They follow data.size, by a rule that may have been another one in the version that started the run. They are kept
    only if the run has the same data.size.

    Args:
        config: the config as nested dicts.
        workdir: the folder of the run, which need not exist.
        derived: the fields, such as 'data.short_side', see `configs.loading.derived`.
    Raises:
        ConfigError: the `run.json` of the run is damaged.
    """
    if not os.path.exists(os.path.join(workdir, "run.json")):
        return config
    stored = read_run_json(workdir)["config"]["data"]
    if stored.get("size") != config["data"]["size"]:
        return config
    kept = {name: stored[name] for name in config["data"] if f"data.{name}" in derived and name in stored}
    return config | {"data": config["data"] | with_tuples(kept)}

"""Combines the config of a model with the data section of a data set."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from configs.loading import require


def with_data(name: str, /, **data) -> ConfigDict:
    """Returns the config of `configs/NAME.py` with other data.

    Args:
        name: the config of a model, without folder and extension, such as mevit_b16.
        **data: fields of the section `data`.
    Raises:
        FlagError: there is no such config.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*_*.py") if path.stem != "__init__")
    require(name in names, f"the config after the colon must be one of {', '.join(names)}, not {name!r}")
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.update(data)
    return config

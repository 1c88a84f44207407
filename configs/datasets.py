"""Combines the config of a model with the data section of a data set."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from configs.loading import require
from configs.sources import cite


def with_data(name: str, /, **data) -> ConfigDict:
    """Returns the config of `configs/NAME.py` with other data.

    Args:
        name: the config of a model, without folder and extension, such as mevit_b16. A variant may follow after a
            colon, such as msca_b16:released.
        **data: fields of the section `data` that the data set determines.
    Raises:
        FlagError: there is no such config, or it has no such variant.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*_*.py") if path.stem != "__init__")
    name, colon, variant = name.partition(":")
    require(name in names, f"the config after the colon must be one of {', '.join(names)}, not {name!r}")
    get_config = importlib.import_module(f"configs.{name}").get_config
    require(not colon or get_config.__code__.co_argcount > 0, f"configs/{name}.py has no variants after a colon")
    config = get_config(variant) if colon else get_config()
    cite(config, "the data set: its layout and its classes", data=data)
    return config

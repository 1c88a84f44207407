"""Combines the sheet of a model with the data section of a data set."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from configs.sheet import require


def with_data(sheet: str, **data) -> ConfigDict:
    """Returns the config of `configs/SHEET.py` with other data.

    Args:
        sheet: name of the sheet of a model, without folder and extension.
        **data: fields of the section `data`.
    Raises:
        SheetError: there is no such sheet.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*_*.py") if path.stem != "__init__")
    require(sheet in names, f"the sheet after the colon must be one of {', '.join(names)}, not {sheet!r}")
    config = importlib.import_module(f"configs.{sheet}").get_config()
    config.data.update(data)
    return config

"""What a sheet of a data set is: another sheet, by name, with that set's half of the config."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from configs.sheet import require


def with_data(sheet: str, **data) -> ConfigDict:
    """The config of `configs/SHEET.py` on other data.

    Args:
        sheet: name without folder and extension, of a model.
        data: fields of the section `data`.
    Raises:
        SheetError: there is no such sheet.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*_*.py") if path.stem != "__init__")
    require(sheet in names, f"after the colon stands a sheet of a model, one of {', '.join(names)}, not {sheet!r}")
    config = importlib.import_module(f"configs.{sheet}").get_config()
    config.data.update(data)
    return config

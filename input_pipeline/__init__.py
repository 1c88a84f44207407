"""From video files to batches of uint8 clips: annotations -> sampling -> decode -> augment -> batches.

The names below are imported when they are first used, so that `input_pipeline.files` and `input_pipeline.errors` load
neither grain nor PyAV.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from input_pipeline.annotations import Manifest, Record
    from input_pipeline.errors import DataError
    from input_pipeline.pipeline import Pipeline

__all__ = ["DataError", "Manifest", "Pipeline", "Record"]

_MODULES = {"DataError": "errors", "Manifest": "annotations", "Pipeline": "pipeline", "Record": "annotations"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

"""From video files to batches of uint8 clips: annotations -> sampling -> decode -> augment -> batches."""

from input_pipeline.annotations import Manifest, Record
from input_pipeline.errors import DataError
from input_pipeline.pipeline import Pipeline

__all__ = ["DataError", "Manifest", "Pipeline", "Record"]

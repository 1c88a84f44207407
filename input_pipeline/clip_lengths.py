"""The usual length of the training clips."""

import os
import statistics

import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.pipeline import Pipeline
from input_pipeline.videos import open_video

_MAX_VIDEOS = 32  # that are opened


def median_seconds(pipeline: Pipeline) -> float | None:
    """Returns the median length of up to 32 training videos in seconds, or None if they are not here."""
    if not os.path.isdir(pipeline.root):  # the demo would render its videos
        return None
    try:
        records = pipeline.train_manifest.records
    except DataError:
        return None
    chosen = np.unique(np.linspace(0, len(records) - 1, _MAX_VIDEOS).round().astype(int))
    lengths = [_seconds(records[number], pipeline) for number in chosen]
    known = [length for length in lengths if length]
    return statistics.median(known) if known else None


def _seconds(record: Record, pipeline: Pipeline) -> float | None:
    if record.start is not None and record.end is not None:
        return record.end - record.start
    try:
        return open_video(record, frame_rate=pipeline.frame_rate, limit_seconds=pipeline.limit_seconds).duration
    except DecodeError:
        return None

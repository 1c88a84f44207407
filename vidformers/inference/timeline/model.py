"""The windows and segments of a trained model, with the settings of its run where an argument is None."""

from typing import Any, Protocol

from input_pipeline.annotations import Record
from vidformers.errors import require
from vidformers.inference.timeline.segments import Segments
from vidformers.inference.timeline.windows import Windows
from vidformers.training.evaluate import EvalProtocol
from vidformers.training.scoring import MultiLabel, SingleLabel

_THRESHOLD = 0.5  # of one label per clip


class Model(Protocol):
    """The part of `Predictor` that says how windows are cut and labelled."""

    classes: tuple[str, ...]
    data: dict[str, Any]
    protocol: EvalProtocol
    scoring: SingleLabel | MultiLabel

    def median_seconds(self) -> float | None: ...


def model_windows(
    model: Model, record: Record, every: float, window: float | None, start: float, end: float | None
) -> Windows:
    """Returns the windows of a video. The arguments are those of `Predictor.timeline`.

    Raises:
        ConfigError: an argument is out of range, or the video cannot be decoded.
    """
    return Windows(
        record, model.data, model.protocol, model.median_seconds, every=every, seconds=window, start=start, end=end
    )


def model_segments(model: Model, every: float, threshold: float | None, shortest: float | None) -> Segments:
    """Returns what makes segments of windows. The arguments are those of `Predictor.timeline`.

    Raises:
        ConfigError: an argument is out of range.
    """
    several = model.scoring.has_several_labels
    if threshold is None:
        threshold = model.protocol.threshold if several else _THRESHOLD
    shortest = every if shortest is None else shortest
    require(0 <= threshold <= 1, f"--threshold={threshold} must be a probability from 0 to 1.")
    require(0 <= shortest < 1e9, f"--shortest={shortest} must be seconds from 0 on.")
    return Segments(model.classes, threshold, shortest, every, several)

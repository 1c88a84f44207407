"""The check of every section of a config. It needs no data and no devices, and compiles and writes nothing."""

from typing import Any, NamedTuple

from input_pipeline import Pipeline
from input_pipeline.augment import crop_positions
from input_pipeline.fields import shown
from vidformers.errors import require
from vidformers.models.registry import check_fields
from vidformers.parallel.mesh import check_axes
from vidformers.pretrained import Init
from vidformers.training.config import CheckpointConfig, OwnConfig, TrainConfig
from vidformers.training.evaluate import EvalProtocol
from vidformers.training.optim import OptimConfig

_MAX_SEED = 2**32 - 1  # Grain takes no larger one
_MAX_VIEW_BYTES = 4 * 2**30


class Sections(NamedTuple):
    """The sections of a config, with checked fields."""

    data: Pipeline
    init: Init
    train: TrainConfig
    optim: OptimConfig
    eval: EvalProtocol
    checkpoint: CheckpointConfig
    own: OwnConfig


def check_sections(config: dict[str, Any]) -> Sections:
    """Checks the fields of every section, each section by itself. The model is not built.

    Args:
        config: the config of a run as nested dicts.

    Raises:
        ConfigError, DataError: a value has the wrong type, or is out of range.
    """
    seed = config["seed"]
    require(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= _MAX_SEED,
        f"seed={shown(seed)} must be an integer from 0 to {_MAX_SEED:,}.",
    )
    check_fields(**config["model"])
    check_axes(**config["mesh"])
    sections = Sections(
        data=Pipeline(**config["data"]),
        init=Init(**config["init"]),
        train=TrainConfig(**config["train"]),
        optim=OptimConfig(**config["optim"]),
        eval=EvalProtocol(**config["eval"]),
        checkpoint=CheckpointConfig(**config["checkpoint"]),
        own=OwnConfig(**config.get("own", {})),  # runs of before have no such section
    )
    crop_positions(sections.eval.crops)
    _check_views(sections)
    return sections


def _check_views(sections: Sections) -> None:
    """Checks that the views of a video fit in the memory of a worker."""
    protocol, data = sections.eval, sections.data
    frames, size = protocol.frames or data.frames, data.size
    num_bytes = protocol.clips * protocol.crops * frames * size**2 * 3
    require(
        num_bytes <= _MAX_VIEW_BYTES,
        f"eval.clips={protocol.clips} x eval.crops={protocol.crops} views of a video, each of {frames} frames of "
        f"{size} x {size} pixels, take "
        f"{num_bytes / 2**30:,.1f} GiB. They must take at most {_MAX_VIEW_BYTES / 2**30:g}: set eval.clips to at most "
        f"{max(_MAX_VIEW_BYTES * protocol.clips // num_bytes, 1)}.",
    )

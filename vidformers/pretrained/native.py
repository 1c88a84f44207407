"""Weights exported by this library: a folder from `--mode=export`. Its arrays have the names of the parameters."""

import json
import math
from dataclasses import dataclass

import numpy as np

from input_pipeline.fields import shown
from input_pipeline.json_files import JsonError, check_kind
from vidformers.errors import ConfigError, require
from vidformers.models.config import SIZES
from vidformers.models.registry import with_default_fields
from vidformers.pretrained.assign import Assignment, Init, resize_grid, resize_time
from vidformers.pretrained.layouts import ArrayReader

# Fields of the section `model` that may differ. Either a difference shows in the shapes of the parameters, or the field
# does not affect how the parameters are used.
_FREE = (
    "frames",
    "image_size",
    "num_classes",
    "size",
    "dropout",
    "drop_path",
    "temporal_dropout",
    "head_dropout",
    "dtype",
    "remat",
    "unroll",
    "masked",
    "backend",
    "frames_at_once",
    "starts_as_image",
    "dictionary_scale",
)
_MOST_FRAMES = 10_000


@dataclass
class NativeWeights:
    """Weights exported by this library.

    Attributes:
        arrays: the reader of the arrays. Their names are those of the parameters.
        head: as in `layouts.TransformerWeights`.
        position_frames: t of a table of joint positions (1 + t y x, d); 1 for positions of space alone.
        layout, not_loaded, remarks: as in `layouts.TransformerWeights`.
    """

    arrays: ArrayReader
    head: dict
    position_frames: int
    layout: str = "model of vidformers"
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def is_native(arrays) -> bool:
    """Returns whether the arrays were exported by this library, judging by their names."""
    return {"head.kernel", "head.bias"} <= arrays.keys() and all(
        name.startswith(("encoder.", "readout.", "head.")) for name in arrays
    )


def read(arrays, metadata) -> tuple[NativeWeights, ArrayReader]:
    """Reads arrays exported by this library. The arguments and results are those of `layouts.read`."""
    reader, section = ArrayReader(arrays), model_section(metadata) or {}
    position_frames = 1
    if section.get("positions") == "joint":
        position_frames = section["frames"] // section.get("patch_frames", 1)
    head = {name: reader[f"head.{name}"] for name in ("kernel", "bias")}
    return NativeWeights(reader, head, position_frames), reader


def model_section(metadata: dict) -> dict | None:
    """Returns the section `model` of the config.json of an export, or None if there is none.

    Raises:
        ConfigError: the section is none of a model.
    """
    section = metadata.get("model")
    if section is None:
        return None
    try:
        check_kind(section, {"name": str}, "model")
        for field in ("size", "positions"):
            check_kind(section.get(field, ""), (str, type(None)), f"model.{field}")
    except JsonError as error:
        raise ConfigError(f"the config.json beside the file {error}") from None
    for field in ("frames", "patch_frames"):
        value = section.get(field, 1)
        require(
            type(value) is int and 0 < value <= _MOST_FRAMES,
            f"model.{field}={shown(value)} in the config.json beside the file must be a positive integer",
        )
    return section


def resolve_size(section: dict) -> dict:
    """Returns a section `model` in which the fields that `size` determines have values."""
    size = SIZES[section["size"]]._asdict() if section.get("size") in SIZES else {}
    return section | {name: number for name, number in size.items() if section.get(name) is None}


def model_differences(before: dict, now: dict):
    """Yields (field, old value, new value) for fields that differ and change the output for equal parameters.

    A field of the model's own that the older section lacks, because its version did not have it, has its default.
    """
    before = with_default_fields(before, own=True)
    before, now = (json.loads(json.dumps(resolve_size(dict(section)))) for section in (before, now))
    for field in before:
        if field in now and field not in _FREE and before[field] != now[field]:
            yield field, before[field], now[field]


def check(make_model, metadata: dict, init: Init) -> list[str]:
    """Checks that the weights belong to the same model.

    Returns:
        A remark if config.json does not describe the model, otherwise [].
    Raises:
        ConfigError: the weights were trained as another model. The message continues a sentence that starts with the
            path of the file.
    """
    require(init.channels == "rgb", "it expects red, green and blue in this order: set init.channels to rgb")
    if (stored := model_section(metadata)) is None:
        return ["No config.json names the model of these weights. They must belong to the model of this config."]
    for field, before, now in model_differences(stored, make_model.keywords):
        word = "normalisation" if field in ("mean", "std") else field
        require(
            word in init.allow,
            f"it was trained with model.{field}={shown(before)}, and here it is {now!r}; "
            f"init.allow=\"('{word}',)\" loads it anyway",
        )
    return []


class NativeAssignment(Assignment):
    """Assigns `NativeWeights`: finds each parameter by its name. Tables of positions are resized in space and time."""

    def place(self, model):
        for path, shape in self.shapes.items():
            if path[0] == "head":
                continue
            array, how, note = self.weights.arrays[".".join(map(str, path))], "loaded", ""
            if array.shape != shape and path[-1] in ("space", "time"):
                self.check_width(path, array, "its table of positions")
            if array.shape != shape and path[-1] == "space":
                frames = model.encoder.embedding.grid[0] if self.weights.position_frames > 1 else 1
                array, note = _resize_space(array, shape[0], self.weights.position_frames, frames)
                how = "resized"
            elif array.shape != shape and path[-1] == "time":
                array, how, note = resize_time(array, shape[0]), "resized", f"positions of {len(array)} frames"
            self.place_array(path, array, how, note)


def _resize_space(table, rows: int, frames_before: int, frames: int):
    """Resizes a table (1 + t y x, d) of a class token and square grids to (rows, d). Returns (table, note)."""
    before, after = math.isqrt((len(table) - 1) // frames_before), math.isqrt((rows - 1) // frames)
    grid = resize_grid(table[1:].reshape(frames_before, before, before, -1), (frames, after, after))
    return np.concatenate([table[:1], grid.reshape(rows - 1, -1)]), f"positions of {before} x {before} patches"

"""Weights of our own models: a folder from `--mode=export`, whose arrays have the names of the parameters."""

import json
import math
from dataclasses import dataclass

import numpy as np

from vidformers.errors import require
from vidformers.models.config import SIZES
from vidformers.pretrained.fit import Fit, Init, resize_grid, resize_time
from vidformers.pretrained.layouts import ArrayReader

# Fields of the section `model` that may differ: the shapes of the parameters show them, or they change the meaning of
# no parameter.
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
)


@dataclass
class NativeWeights:
    """The weights of a model of this library.

    Attributes:
        arrays: reads the arrays by the names of the parameters.
        head: as in `layouts.Transformer`.
        position_frames: t of a table of joint positions (1 + t y x, d); 1 for positions of space alone.
        layout, not_loaded, remarks: as in `layouts.Transformer`.
    """

    arrays: ArrayReader
    head: dict
    position_frames: int
    layout: str = "model of vidformers"
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def is_native(arrays) -> bool:
    """Whether the arrays have the names of the parameters of a model here."""
    return {"head.kernel", "head.bias"} <= arrays.keys() and all(
        name.startswith(("encoder.", "readout.", "head.")) for name in arrays
    )


def read(arrays, metadata) -> tuple[NativeWeights, ArrayReader]:
    """Reads the arrays of our own model; the arguments and results are those of `layouts.read`."""
    reader, section = ArrayReader(arrays), metadata.get("model") or {}
    is_joint = section.get("positions") == "joint"
    position_frames = section["frames"] // section.get("patch_frames", 1) if is_joint else 1
    head = {name: reader[f"head.{name}"] for name in ("kernel", "bias")}
    return NativeWeights(reader, head, position_frames), reader


def resolve_size(section: dict) -> dict:
    """Returns a section `model` with `size` replaced by the numbers that it stands for."""
    size = SIZES[section["size"]]._asdict() if section.get("size") in SIZES else {}
    return section | {name: number for name, number in size.items() if section.get(name) is None}


def model_differences(before: dict, now: dict):
    """Yields (field, old value, new value) of the fields by which equal parameters would give other answers."""
    before, now = (json.loads(json.dumps(resolve_size(dict(section)))) for section in (before, now))
    for field in before:
        if field in now and field not in _FREE and before[field] != now[field]:
            yield field, before[field], now[field]


def check(make_model, metadata: dict, init: Init) -> list[str]:
    """Checks that the weights belong to the same model.

    Returns:
        Remarks on what config.json does not say.
    Raises:
        ConfigError: the weights were trained as another model. The message continues a sentence that starts with the
            path of the file.
    """
    require(init.channels == "rgb", "it expects red, green and blue in this order: set init.channels to rgb")
    if not isinstance(metadata.get("model"), dict):
        return ["No config.json names the model of these weights. They must belong to the model of this config."]
    for field, before, now in model_differences(metadata["model"], make_model.keywords):
        word = "normalisation" if field in ("mean", "std") else field
        require(
            word in init.allow,
            f"it was trained with model.{field}={before!r}, and here it is {now!r}; "
            f"init.allow=\"('{word}',)\" loads it all the same",
        )
    return []


class FitNative(Fit):
    """Fits `NativeWeights`: each parameter by its name. Tables of positions are resized in space and in time."""

    def place(self, model):
        for path, shape in self.shapes.items():
            if path[0] == "head":
                continue
            array, how, note = self.source.arrays[".".join(map(str, path))], "loaded", ""
            if array.shape != shape and path[-1] == "space":
                frames = model.encoder.embedding.grid[0] if self.source.position_frames > 1 else 1
                array, note = _resize_space(array, shape[0], self.source.position_frames, frames)
                how = "resized"
            elif array.shape != shape and path[-1] == "time":
                array, how, note = resize_time(array, shape[0]), "resized", f"positions of {len(array)} frames"
            self.place_array(path, array, how, note)


def _resize_space(table, rows: int, frames_before: int, frames: int):
    """Resizes a table (1 + t y x, d) of a class token and square grids to `rows` rows. Returns (table, note)."""
    before, after = math.isqrt((len(table) - 1) // frames_before), math.isqrt((rows - 1) // frames)
    grid = resize_grid(table[1:].reshape(frames_before, before, before, -1), (frames, after, after))
    return np.concatenate([table[:1], grid.reshape(rows - 1, -1)]), f"positions of {before} x {before} patches"

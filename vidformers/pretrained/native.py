"""Weights of our own: a folder that `--mode=export` wrote, whose arrays have the names of the parameters."""

import json
import math
from dataclasses import dataclass

import numpy as np

from vidformers.errors import require
from vidformers.models.config import SIZES
from vidformers.pretrained.fit import Fit, Init, resize_grid, resize_time
from vidformers.pretrained.layouts import Names

# Fields of the section `model` that may differ: those that shapes show, and those that change no parameter's meaning.
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
    """The arrays of a model here, and its head as `layouts.Transformer` has it."""

    names: Names
    head: dict
    tubes: int  # t of a table of positions (1 + t y x, d) over space and time; 1 where it is of space alone
    layout: str = "model of vidformers"
    left: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


def recognised(arrays) -> bool:
    """Whether these are the names of a model here."""
    return {"head.kernel", "head.bias"} <= arrays.keys() and all(
        name.startswith(("encoder.", "readout.", "head.")) for name in arrays
    )


def read(arrays, about) -> tuple[NativeWeights, Names]:
    """As `layouts.read`."""
    names, model = Names(arrays), about.get("model") or {}
    tubes = model["frames"] // model.get("patch_frames", 1) if model.get("positions") == "joint" else 1
    return NativeWeights(names, {name: names(f"head.{name}") for name in ("kernel", "bias")}, tubes), names


def resolve_size(section: dict) -> dict:
    """A section `model` with the numbers that `size` stands for in their places."""
    size = SIZES[section["size"]]._asdict() if section.get("size") in SIZES else {}
    return section | {name: number for name, number in size.items() if section.get(name) is None}


def model_differences(before: dict, now: dict):
    """The fields of two sections `model` by which equal parameters would give other answers, with both values."""
    before, now = (json.loads(json.dumps(resolve_size(dict(section)))) for section in (before, now))
    for field in before:
        if field in now and field not in _FREE and before[field] != now[field]:
            yield field, before[field], now[field]


def check(make_model, about: dict, init: Init) -> list[str]:
    """Remarks on what config.json does not say.

    Raises:
        ConfigError: it was trained as another model; the sentence goes on from the path.
    """
    require(init.channels == "rgb", "it takes red, green and blue in this order: init.channels must be rgb")
    if not isinstance(about.get("model"), dict):
        return ["No config.json says of which model they are: its fields must be those of this one."]
    for field, before, now in model_differences(about["model"], make_model.keywords):
        word = "normalisation" if field in ("mean", "std") else field
        require(
            word in init.allow,
            f"it was trained with model.{field}={before!r}, and here it is {now!r}; "
            f"init.allow=\"('{word}',)\" goes on all the same",
        )
    return []


class FitNative(Fit):
    """An `Own`, each parameter by its name; tables of positions are resized, in space and in time."""

    def place(self, model):
        for path, shape in self.shapes.items():
            if path[0] == "head":
                continue
            array, how, note = self.source.names(".".join(map(str, path))), "loaded", ""
            if array.shape != shape and path[-1] == "space":
                now = model.encoder.embedding.grid[0] if self.source.tubes > 1 else 1
                array, note = _space(array, shape[0], self.source.tubes, now)
                how = "resized"
            elif array.shape != shape and path[-1] == "time":
                array, how, note = resize_time(array, shape[0]), "resized", f"positions of {len(array)} frames"
            self.put(path, array, how, note)


def _space(table, count, tubes, now):
    """The table (1 + t n, d) of class token and patches, for squares of another side and `now` for `tubes` of them."""
    before, after = math.isqrt((len(table) - 1) // tubes), math.isqrt((count - 1) // now)
    grid = resize_grid(table[1:].reshape(tubes, before, before, -1), (now, after, after))
    return np.concatenate([table[:1], grid.reshape(count - 1, -1)]), f"positions of {before} x {before} patches"

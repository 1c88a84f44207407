"""The registry of models, and `build`, which makes one by its name.

A model function takes a `ModelConfig`, its own fields as keyword arguments, and rngs. The fields of a config's section
`model` are derived from its signature, so a new model needs its file, an import here and a call of `register`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from input_pipeline.fields import mistakes, shown
from vidformers.errors import require
from vidformers.models.config import ModelConfig, ModelTraits
from vidformers.models.cvt import CVT, cvt
from vidformers.models.encoder import Classifier
from vidformers.models.havit import havit
from vidformers.models.joint import joint
from vidformers.models.mevit import mevit
from vidformers.models.msca import msca
from vidformers.models.stat import STAT, stat
from vidformers.models.swin import SWIN, swin
from vidformers.models.timesformer import timesformer
from vidformers.models.tokenshift import tokenshift
from vidformers.models.vit import vit
from vidformers.models.vtn import vtn

_MOST = 65_536  # of the integers that single models have, such as the side of a window
_LONGEST = 80  # characters of a field in a message


@dataclass(frozen=True)
class ModelEntry:
    """One row of `MODELS`.

    Attributes:
        function: function(config, *, rngs, **fields) returns the model.
        fields: every field of the model as a parameter with annotation and default. The shared fields come first.
        own: the names of the fields that are arguments of `function`, not of `ModelConfig`.
        traits: see `ModelTraits`.
    """

    function: Callable[..., Classifier]
    fields: Mapping[str, inspect.Parameter]
    own: frozenset[str]
    traits: ModelTraits


MODELS: dict[str, ModelEntry] = {}


def register(name: str, function: Callable[..., Classifier], traits: ModelTraits | None = None) -> None:
    """Adds a row to `MODELS`.

    Raises:
        ValueError: the name is registered already, or a field of the function is a shared field.
    """
    if name in MODELS:
        raise ValueError(f"The model {name!r} is registered twice.")
    sized = _keywords(ModelConfig.from_size)
    shared = sized | {field: parameter for field, parameter in _keywords(ModelConfig).items() if field not in sized}
    own = _keywords(function)
    if both := sorted(shared.keys() & own.keys()):
        raise ValueError(f"The fields {both} of the model {name!r} are fields of ModelConfig.")
    traits = traits or ModelTraits()
    for field, default in traits.defaults.items():
        shared[field] = shared[field].replace(default=default)
    MODELS[name] = ModelEntry(function, shared | own, frozenset(own), traits)


def _keywords(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the keyword-only parameters of a callable without rngs."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "rngs"}


def with_default_fields(section: Mapping[str, Any], *, own: bool = False) -> dict[str, Any]:
    """Returns a stored section `model` with the defaults of the fields that it lacks.

    A section lacks a field if the version that stored it did not have the field. The default of a new field gives the
    model of before.

    Args:
        section: the fields, and the name of the model under `name`. Of an unknown model it is returned as it is.
        own: add no fields that all models share.
    """
    complete = dict(section)
    if (entry := MODELS.get(complete.get("name", ""))) is not None:
        for name, field in entry.fields.items():
            is_in_configs = name != "masked"  # the reference form of attention, which only tests compute
            if field.default is not field.empty and is_in_configs and (name in entry.own or not own):
                complete.setdefault(name, field.default)
    return complete


def check_fields(name: str, **fields: Any) -> None:
    """Checks that the fields of a section `model` belong to the model, and their types.

    Args:
        name: a key of `MODELS`.
        **fields: see `build`.
    Raises:
        ConfigError: an unknown model, an unknown field, or a value of another type.
    """
    require(isinstance(name, str) and name in MODELS, f"model.name={shown(name)} must be one of {', '.join(MODELS)}.")
    annotations = {field: parameter.annotation for field, parameter in MODELS[name].fields.items()}
    for field in fields:
        require(field in annotations, f"model.{field[:_LONGEST]} is not a field of the model {name!r}.")
    for field, expected in mistakes(fields, annotations).items():
        require(False, f"model.{field}={shown(fields[field])} must be {expected}.")
    for field in fields.keys() & MODELS[name].own:
        numbers = fields[field] if isinstance(fields[field], tuple | list) else (fields[field],)
        for number in numbers:
            require(
                not isinstance(number, int) or number <= _MOST, f"model.{field}={number} must be at most {_MOST:,}."
            )


def build(name: str, *, rngs: nnx.Rngs, **fields: Any) -> Classifier:
    """Returns the model `name` of `MODELS`, as in `build("mevit", num_classes=10, rngs=nnx.Rngs(0))`.

    Args:
        name: a key of `MODELS`.
        rngs: draws the initial parameters.
        **fields: fields of `ModelConfig.from_size`, and those of the model's function.
    Returns:
        The model, a function of video (b t y x c). Pixels are uint8, from 0 to 255, and the model normalises them by
        its `mean` and `std`. Floats count as pixels that are normalised already, which floats from 0 to 1 are not.
        Other types are refused.
    Raises:
        ConfigError: an unknown model, an unknown field, or a value that is out of range.
    """
    check_fields(name, **fields)
    entry = MODELS[name]
    own = {field: value for field, value in fields.items() if field in entry.own}
    shared = {field: value for field, value in fields.items() if field not in entry.own}
    return entry.function(ModelConfig.from_size(**{**entry.traits.defaults, **shared}), rngs=rngs, **own)


register("vit", vit)
register("timesformer", timesformer)
register("joint", joint)
register("mevit", mevit)
register("havit", havit)
register("msca", msca)
register("tokenshift", tokenshift)
register("vtn", vtn)
register("swin", swin, SWIN)
register("cvt", cvt, CVT)
register("stat", stat, STAT)

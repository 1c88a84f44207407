"""Matching the classes of a file's head with the classes of the model."""

import numpy as np

from vidformers.errors import ConfigError
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained import layouts, native


def match_classes(model, weights, metadata, init, class_names):
    """Matches the classes of the model with those of the weights' head.

    Args:
        model: the abstract model.
        weights: the weights, in one of the structures of `layouts` or `native`.
        metadata: the content of config.json and preprocessor_config.json beside the file.
        init: the section `init`.
        class_names: the names of the model's classes in order, or None.
    Returns:
        (for each class of the model the class of the weights' head, or None to initialise the head randomly; remarks)
    Raises:
        ConfigError: the numbers of classes are equal, but the classes are not known to be the same; or init.head=as_is
            and the numbers of classes differ.
    """
    if init.head == "draw" or weights.head is None:
        return None, []
    width, count = weights.head["kernel"].shape
    if width != model.head.in_features or not _reads_same_features(model, weights):
        return None, ["The head is not loaded, since it reads other features than the model's."]
    if init.head == "as_is":
        if count != model.num_classes:
            raise ConfigError(f"its head has {count} classes, and the model has {model.num_classes}")
        return np.arange(count), ["The head is loaded by class number (init.head=as_is)."]
    names = head_class_names(metadata, count)
    if names is not None and class_names is not None and sorted(names) == sorted(map(_normalise, class_names)):
        return np.array([names.index(_normalise(name)) for name in class_names]), []
    if count != model.num_classes:
        return None, [f"The head is not loaded, since it has {count} classes."]
    why = (
        "it does not name them"
        if names is None
        else "the data set does not name its own"
        if class_names is None
        else "they have other names"
    )
    raise ConfigError(
        f"its head has as many classes as the model, but {why}: init.head=as_is loads it by class number, "
        "init.head=draw initialises a new one randomly"
    )


def _reads_same_features(model, weights) -> bool:
    """Returns whether both heads read the output of layers over frames, or neither does."""
    if isinstance(weights, native.NativeWeights):
        return True
    has_readout = isinstance(weights, layouts.TransformerWeights) and weights.readout is not None
    return has_readout == isinstance(model.readout, TemporalEncoder)


def head_class_names(metadata, count: int) -> list[str] | None:
    """Returns the normalised names of the `count` classes of a head, or None if `id2label` does not name them all."""
    table = metadata.get("id2label")
    if not isinstance(table, dict) or len(table) != count:
        return None
    try:
        names = [_normalise(table[str(number)]) for number in range(count)]
    except (KeyError, AttributeError):
        return None
    if len(set(names)) < count or all(name == f"label {number}" for number, name in enumerate(names)):
        return None  # Hugging Face writes LABEL_0, LABEL_1, ... if the classes have no names
    return names


def _normalise(name) -> str:
    return " ".join(str(name).lower().replace("_", " ").split())

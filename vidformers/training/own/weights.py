"""The fields of a model that takes given weights: size, patches and normalisation follow the file."""

from typing import Any

from vidformers.errors import ConfigError
from vidformers.models.registry import MODELS
from vidformers.pretrained import Init, layouts, native
from vidformers.pretrained.files import open_file
from vidformers.pretrained.load import normalisation
from vidformers.training.run_weights import open_run

_RUN_FIELDS = ("name", "num_classes", "dtype", "remat", "unroll", "backend", "masked")  # of a model, not of its weights


def model_of_weights(name: str, init: Init) -> dict[str, Any]:
    """Returns the fields of the section `model` with which the model takes the weights that `init.weights` names.

    Args:
        name: a key of `MODELS`.
        init: the section `init`, with `weights` set.
    Raises:
        ConfigError: the file cannot be read, or has an unknown layout.
    """
    file = open_run(str(init.weights)) or open_file(str(init.weights))
    known = MODELS[name].fields
    if native.is_native(file.arrays):
        section = native.model_section(file.metadata) or {}
        return {field: value for field, value in section.items() if field in known and field not in _RUN_FIELDS}
    try:
        weights, _ = layouts.read(file.arrays, file.metadata)
    except ConfigError as error:
        raise ConfigError(f"init.weights={init.weights}: {str(error).rstrip('.')}.") from None
    fields = _transformer(name, weights) if isinstance(weights, layouts.TransformerWeights) else {}
    mean, std = normalisation(weights, file.metadata, init)
    if mean is not None:
        fields |= {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    return fields


def _transformer(name: str, weights: layouts.TransformerWeights) -> dict[str, Any]:
    kernel = weights.patch["kernel"]
    # MEViT's last block, its class attention, has no weights: it takes the place of the last block of a ViT.
    fields = {
        "width": int(kernel.shape[-1]),
        "depth": len(weights.blocks) - (name == "mevit"),
        "patch_size": int(kernel.shape[-3]),
    }
    if weights.heads is not None:
        fields["heads"] = weights.heads
    if "patch_frames" in MODELS[name].fields:
        fields["patch_frames"] = int(kernel.shape[0]) if kernel.ndim == 5 else 1
    return fields

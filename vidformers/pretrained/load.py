"""Loading weights as the section `init` specifies: values for the parameters, and a report on the origin of each."""

import json
from dataclasses import asdict, dataclass

import jax
import numpy as np
from flax import nnx

from input_pipeline.fields import shown
from vidformers.errors import ConfigError, require
from vidformers.pretrained import layouts, native
from vidformers.pretrained.assign import Assignment, Init, ParameterOrigin
from vidformers.pretrained.assign_convolutional import CvtAssignment, ResNetAssignment
from vidformers.pretrained.assign_swin import SwinAssignment
from vidformers.pretrained.assign_transformer import TransformerAssignment
from vidformers.pretrained.files import File, open_file
from vidformers.pretrained.head import head_class_names, match_classes
from vidformers.pretrained.remarks import channel_remarks, gelu_remarks, space_only_remarks
from vidformers.pretrained.roles import patch_encoder
from vidformers.pretrained.still_clip import still_clip_differences

_ASSIGNMENTS = {
    layouts.TransformerWeights: TransformerAssignment,
    layouts.SwinWeights: SwinAssignment,
    layouts.CvtWeights: CvtAssignment,
    layouts.ResNetWeights: ResNetAssignment,
    native.NativeWeights: native.NativeAssignment,
}

_LARGEST = 1000.0  # mean or standard deviation of pixels, also of those from 0 to 255


@dataclass(frozen=True)
class Pretrained:
    """Values for the parameters of a model, and a report on their origin.

    Attributes:
        values: path in the tree of parameters -> array.
        origins: the origin of each parameter.
        unused: names of the arrays in the file that no parameter takes.
        file: the file of weights.
        layout: the name of its layout.
        remarks: notes for the user: assumptions made, and arrays that were not loaded.
        training_info: facts about the training of the weights: {channels, mean, std, classes}. Unknown ones are None.
        still_clip_differences: for weights of an image model, the reasons why a clip of identical frames gives other
            features than the image model gives for that frame; [] if the features are equal. None for weights of a
            video model, and for those of a Swin, CvT or ResNet, for which they are not computed.
    """

    values: dict[tuple, np.ndarray]
    origins: list[ParameterOrigin]
    unused: list[str]
    file: File
    layout: str
    remarks: list[str]
    training_info: dict
    still_clip_differences: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        """Returns the number of loaded, resized and new parameters and of unused arrays."""
        return {how: sum(origin.how == how for origin in self.origins) for how in ("loaded", "resized", "new")} | {
            "unused": len(self.unused)
        }

    def require_complete(self) -> None:
        """Raises ConfigError unless the file has values for every parameter."""
        new = [origin.parameter for origin in self.origins if origin.how == "new"]
        require(
            not new,
            f"init.weights={self.file.path} lacks {', '.join(new[:4])}{' and more' if len(new) > 4 else ''}. "
            "Train the model first: it cannot be used with randomly initialised parameters.",
        )

    def report(self) -> str:
        """Returns the report as JSON, the content of init.json."""
        differences = self.still_clip_differences
        return (
            json.dumps(
                {
                    "weights": str(self.file.path),
                    "sha256": self.file.sha256,
                    "revision": self.file.revision,
                    "layout": self.layout,
                    "counts": self.counts,
                    "remarks": self.remarks,
                    **self.training_info,
                    "starts_as_image_model": None if differences is None else not differences,
                    "parameters": [asdict(origin) for origin in self.origins],
                    "unused": self.unused,
                    "not_read": list(self.file.not_read),
                },
                indent=1,
            )
            + "\n"
        )

    def place_into(self, parameters):
        """Returns `parameters` with the loaded values in place of theirs. Each array keeps its sharding."""

        def place(tree, path):
            if isinstance(tree, dict):
                return {name: place(child, (*path, name)) for name, child in tree.items()}
            if path not in self.values:
                return tree
            value = self.values[path].astype(tree.dtype)
            return jax.make_array_from_callback(value.shape, tree.sharding, lambda index: value[index])

        return place(parameters, ())


def abstract_model(make_model):
    """Returns the model with shapes in place of arrays. Nothing is computed."""
    return nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))


def load(init: Init, make_model, class_names=None, file: File | None = None) -> Pretrained:
    """Reads weights and assigns them to the parameters of a model.

    Args:
        init: the section `init`, with `weights` set.
        make_model: rngs -> the model.
        class_names: the names of the model's classes in order, or None if they have no names.
        file: the weights, if `init.weights` names the folder of a run, which `training.run_weights` reads.
    Raises:
        ConfigError: the file cannot be read, or its arrays do not belong to such a model.
    """
    file = file or open_file(str(init.weights))
    model = abstract_model(make_model)
    try:
        weights, assignment, unused, remarks = _assign(file, model, make_model, init, class_names)
        mean, std = normalisation(weights, file.metadata, init)
    except ConfigError as error:
        raise ConfigError(f"init.weights={init.weights}: {str(error).rstrip('.')}.") from None
    except (ValueError, LookupError, ArithmeticError) as error:  # from NumPy, when it transposes or stacks the arrays
        raise ConfigError(
            f"init.weights={init.weights}: its arrays do not have the shapes of their layout "
            f"({' '.join(str(error).split()).rstrip('.')})."
        ) from None
    differences = None
    if isinstance(weights, layouts.TransformerWeights) and weights.is_image_model:
        differences = still_clip_differences(model, assignment.values)
        remarks.append(
            "A clip of identical frames has other features than its frame has in the image model: "
            f"{'; '.join(differences)}."
            if differences
            else "A clip of identical frames has the features that its frame has in the image model."
        )
    training_info = {
        "channels": init.channels,
        "mean": mean,
        "std": std,
        "classes": weights.head and head_class_names(file.metadata, weights.head["kernel"].shape[1]),
    }
    return Pretrained(
        assignment.values,
        assignment.origins,
        unused,
        file,
        weights.layout,
        remarks,
        training_info,
        differences,
    )


def _assign(file: File, model, make_model, init: Init, class_names):
    """Returns (weights, assignment, names of unused arrays, remarks)."""
    is_native = native.is_native(file.arrays)
    weights, reader = (native if is_native else layouts).read(file.arrays, file.metadata)
    if is_native:
        remarks = native.check(make_model, file.metadata, init)
    else:
        remarks = [
            *_check_normalisation(model, weights, file.metadata, init),
            *gelu_remarks(model, weights, file.metadata),
            *channel_remarks(weights, init),
            *space_only_remarks(model, weights),
        ]
    class_order, head_remarks = match_classes(model, weights, file.metadata, init, class_names)
    shapes = nnx.to_pure_dict(nnx.state(model))
    assignment: Assignment = _ASSIGNMENTS[type(weights)](model, shapes, weights, init, class_order)
    unused = reader.unused()
    unexpected = [name for name in unused if not name.startswith(tuple(init.allow))]
    if unexpected:
        names = ", ".join(unexpected[:4]) + (f" and {len(unexpected) - 4} more" if len(unexpected) > 4 else "")
        raise ConfigError(
            f"the file has arrays that the model does not use: {names}. To ignore them, name them or prefixes of their "
            f"names in init.allow, for example init.allow=\"('{unexpected[0]}',)\""
        )
    remarks += [f"Not loaded: {arrays}." for arrays in (*weights.not_loaded, *assignment.not_loaded)]
    return weights, assignment, unused, [*remarks, *head_remarks, *weights.remarks]


def _check_normalisation(model, weights, metadata, init) -> list[str]:
    """Refuses weights that were trained with another normalisation of pixels. Returns a remark if it is unknown."""
    encoder = patch_encoder(model.encoder)[1]
    # `Encoder` normalises the pixels in its `embedding`. `Pyramid` and others have no such module and do so themselves.
    embedding = getattr(encoder, "embedding", encoder)
    mean, std = normalisation(weights, metadata, init)
    if mean is None:
        return [
            "The file does not say how its pixels were normalised. Set model.mean and model.std to the values used "
            "in the training of these weights."
        ]
    # In init.allow, 'normalisation' is a special word and not the name of an array.
    if not np.allclose((embedding.mean, embedding.std), (mean, std), atol=1e-3) and "normalisation" not in init.allow:
        raise ConfigError(
            f"it was trained on pixels normalised with model.mean={tuple(mean)} and model.std={tuple(std)}: set these, "
            "or load it anyway with init.allow=\"('normalisation',)\""
        )
    return []


def normalisation(weights, metadata, init):
    """Returns the (mean, standard deviation) of red, green and blue in the training of weights, or (None, None)."""
    mean, std = (_of_channels(metadata, name) for name in ("image_mean", "image_std"))
    if isinstance(config := metadata.get("pretrained_cfg"), dict):
        mean, std = (_of_channels(config, name) for name in ("mean", "std"))
    if mean is None or std is None:
        mean, std = getattr(weights, "normalisation", None) or (None, None)
    if mean is None:
        return None, None
    return (mean[::-1], std[::-1]) if init.channels == "bgr" else (mean, std)


def _of_channels(metadata, name) -> tuple[float, ...] | None:
    """Returns one number for each of three channels, or None. One number alone, which transformers allows, is for all.

    Raises:
        ConfigError: the value is something else.
    """
    value = metadata.get(name)
    values = value if isinstance(value, list) else [value] * 3
    if value is None:
        return None
    if len(values) != 3 or not all(type(each) in (int, float) and abs(each) < _LARGEST for each in values):
        raise ConfigError(
            f"{name}={shown(value)} in the config.json or preprocessor_config.json beside the file must be three "
            "numbers"
        )
    return tuple(values)

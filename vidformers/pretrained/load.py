"""From the section `init` to the values that parameters start from, and a strict account of them."""

import json
from dataclasses import asdict, dataclass

import jax
import numpy as np
from flax import nnx

from vidformers.attention.core import SelfAttention
from vidformers.attention.longformer import LongformerAttention
from vidformers.errors import ConfigError, require
from vidformers.layers.mlp import Mlp, gelu
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained import layouts
from vidformers.pretrained import native as own
from vidformers.pretrained.files import File, open_file
from vidformers.pretrained.fit import Init, Row
from vidformers.pretrained.fit_transformer import FitTransformer, backbone
from vidformers.pretrained.fit_windows import FitWindows
from vidformers.pretrained.still import differences

_FITS = {layouts.Transformer: FitTransformer, layouts.Windows: FitWindows, own.NativeWeights: own.FitNative}
_TANH = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")  # names of the GELU by tanh in Hugging Face's configurations
_HEAD_WIDTH = 64  # of all published ViTs, for files that do not say


@dataclass(frozen=True)
class Pretrained:
    """Values for the parameters of a model.

    Attributes:
        values: path in the tree of parameters -> array.
        rows: what became of each parameter.
        unused: arrays of the file that no parameter takes.
        file: where they come from.
        layout: whose layout the file is in.
        remarks: what could not be known, a sentence each.
        inputs: what they were trained on as far as it is known: order of channels, mean and deviation, classes.
        still: of image weights, why features of a still clip are not those of the image model, nothing if they are;
            None of weights of video.
    """

    values: dict[tuple, np.ndarray]
    rows: list[Row]
    unused: list[str]
    file: File
    layout: str
    remarks: list[str]
    inputs: dict
    still: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        return {how: sum(row.how == how for row in self.rows) for how in ("loaded", "resized", "new")} | {
            "unused": len(self.unused)
        }

    def require_complete(self) -> None:
        """Raises ConfigError unless every parameter has its value."""
        drawn = [row.parameter for row in self.rows if row.how == "new"]
        require(
            not drawn,
            f"init.weights={self.file.path} can be trained but not used untrained: it lacks "
            f"{', '.join(drawn[:4])}{' and more' if len(drawn) > 4 else ''}.",
        )

    def report(self) -> str:
        """All of it as JSON."""
        return (
            json.dumps(
                {
                    "weights": str(self.file.path),
                    "sha256": self.file.sha256,
                    "revision": self.file.revision,
                    "layout": self.layout,
                    "counts": self.counts,
                    "remarks": self.remarks,
                    **self.inputs,
                    "starts_as_image_model": None if self.still is None else not self.still,
                    "parameters": [asdict(row) for row in self.rows],
                    "unused": self.unused,
                    "not_read": list(self.file.others),
                },
                indent=1,
            )
            + "\n"
        )

    def place_into(self, parameters):
        """A tree of parameters with these values in their places, where each array lies already."""

        def place(tree, path):
            if isinstance(tree, dict):
                return {name: place(child, (*path, name)) for name, child in tree.items()}
            if path not in self.values:
                return tree
            value = self.values[path].astype(tree.dtype)
            return jax.make_array_from_callback(value.shape, tree.sharding, lambda index: value[index])

        return place(parameters, ())


def load(init: Init, make_model, class_names=None) -> Pretrained:
    """Reads weights and fits them to a model.

    Args:
        init: the section; its `weights` are set.
        make_model: rngs -> the model.
        class_names: of the model's classes in order, or None where there are only numbers.
    Raises:
        ConfigError: the file cannot be read, or does not fit; nothing has been changed.
    """
    file = open_file(init.weights)
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model))
    try:
        ours = own.recognised(file.arrays)
        source, names = own.read(file.arrays, file.about) if ours else layouts.read(file.arrays, file.about)
        if isinstance(source, layouts.Transformer):
            _check_heads(model, source, file.about, init)
        remarks = (
            own.check(make_model, file.about, init)
            if ours
            else (_check_normalisation(model, source, file.about, init) + _check_gelu(model, file.about))
        )
        order, remark = _class_order(model, source, file.about, init, class_names)
        fit = _FITS[type(source)](model, shapes, source, init, order)
        unused = names.unused()
        stray = [name for name in unused if not name.startswith(tuple(init.allow))] if init.allow else unused
        if stray:
            some = ", ".join(stray[:4]) + (f" and {len(stray) - 4} more" if len(stray) > 4 else "")
            raise ConfigError(f"nothing in the model takes {some}; init.allow=\"('{stray[0]}',)\" goes on without")
    except ConfigError as error:
        raise ConfigError(f"init.weights={init.weights}: {str(error).rstrip('.')}.") from None
    except (ValueError, LookupError, TypeError) as error:  # of NumPy, which was asked to turn or to stack them
        raise ConfigError(
            f"init.weights={init.weights}: its arrays do not have the shapes of their layout "
            f"({' '.join(str(error).split()).rstrip('.')})."
        ) from None
    remarks += [f"Left: {what}." for what in (*source.left, *fit.left)] + [*remark, *source.unsaid]
    still = None
    if isinstance(source, layouts.Transformer) and source.of_images:
        still = differences(model, fit.values)
        remarks.append(
            "A still clip is to it what the image is to the image model."
            if not still
            else f"A still clip is not to it what the image is to the image model: {'; '.join(still)}."
        )
    mean, std = _normalisation(source, file.about, init)
    inputs = {
        "channels": init.channels,
        "mean": mean,
        "std": std,
        "classes": source.head and _their_names(file.about, source.head["kernel"].shape[1]),
    }
    return Pretrained(fit.values, fit.rows, unused, file, source.layout, remarks, inputs, still)


def _check_heads(model, source, about, init):
    widths = len(source.classes[0])
    heads = about.get("num_attention_heads") or (widths // _HEAD_WIDTH if widths % _HEAD_WIDTH == 0 else None)
    for part in (backbone(model)[1], model.readout):
        for sublayer in _sublayers(part):
            if (
                isinstance(sublayer, (SelfAttention, LongformerAttention))
                and heads
                and sublayer.heads != heads
                and "heads" not in init.allow
                and widths == sublayer.qkv.in_features
            ):
                raise ConfigError(
                    f"it was trained with {heads} heads, and model.heads is {sublayer.heads}; "
                    "init.allow=\"('heads',)\" takes it all the same"
                )


def _sublayers(part):
    """All sublayers of an encoder or a readout."""
    return [sublayer for stage in getattr(part, "stages", ()) for sublayer in stage.layers.sublayers]


def _check_gelu(model, about):
    mlps = [sublayer for sublayer in _sublayers(backbone(model)[1]) if isinstance(sublayer, Mlp)]
    if any(mlp.activation is gelu for mlp in mlps) and about.get("hidden_act") in _TANH:
        return [
            "It was trained with the GELU by tanh, which is up to 5e-4 from the exact one that the model has (a "
            "joint model has model.gelu=tanh)."
        ]
    return []


def _check_normalisation(model, source, about, init):
    encoder = backbone(model)[1]
    embedding = getattr(encoder, "embedding", encoder)
    known = _normalisation(source, about, init)
    if known[0] is None:
        return ["The file does not say how its pixels were normalised: model.mean and model.std must."]
    have = (embedding.mean, embedding.std)
    if not np.allclose(have, known, atol=1e-3) and "normalisation" not in init.allow:
        raise ConfigError(
            f"it was trained on pixels normalised with model.mean={tuple(known[0])} and model.std="
            f"{tuple(known[1])}: set these"
        )
    return []


def _normalisation(source, about, init):
    """Mean and deviation of red, green and blue that the weights were trained with; None where they do not say."""
    known = (about.get("image_mean"), about.get("image_std"))
    if isinstance(cfg := about.get("pretrained_cfg"), dict):
        known = (cfg.get("mean"), cfg.get("std"))
    if known[0] is None and getattr(source, "normalisation", None):
        known = source.normalisation
    if known[0] is None or known[1] is None:
        return None, None
    known = tuple(map(tuple, known))
    return tuple(each[::-1] for each in known) if init.channels == "bgr" else known


def _class_order(model, source, about, init, class_names):
    """(for each class of the model its class in the source, or None to draw the head; remarks)."""
    if init.head == "draw" or source.head is None:
        return None, []
    count = source.head["kernel"].shape[1]
    over_frames = isinstance(source, layouts.Transformer) and source.readout is not None
    if source.head["kernel"].shape[0] != model.head.in_features or (
        not isinstance(source, own.NativeWeights) and over_frames != isinstance(model.readout, TemporalEncoder)
    ):
        return None, ["The head of the file reads other features and is left."]
    if init.head == "as_is":
        if count != model.num_classes:
            raise ConfigError(f"its head has {count} classes, the model {model.num_classes}")
        return np.arange(count), ["The head is taken by number, as init.head=as_is says."]
    theirs = _their_names(about, count)
    if theirs is not None and class_names is not None and sorted(theirs) == sorted(map(_plain, class_names)):
        return np.array([theirs.index(_plain(name)) for name in class_names]), []
    if count != model.num_classes:
        return None, [f"The head of {count} classes is left."]
    why = (
        "it does not name them"
        if theirs is None
        else "the data set does not name its own"
        if class_names is None
        else "they are others"
    )
    raise ConfigError(
        f"its head has as many classes as the model, but {why}: init.head=as_is takes it by number, "
        "init.head=draw leaves it"
    )


def _their_names(about, count):
    table = about.get("id2label")
    if not isinstance(table, dict) or len(table) != count:
        return None
    try:
        names = [_plain(table[str(number)]) for number in range(count)]
    except (KeyError, AttributeError):
        return None
    if len(set(names)) < count or all(name == f"label {number}" for number, name in enumerate(names)):
        return None
    return names


def _plain(name):
    return " ".join(str(name).lower().replace("_", " ").split())

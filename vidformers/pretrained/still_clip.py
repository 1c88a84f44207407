"""Whether a model that starts from an image model sees a still clip as that sees the image."""

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.shifted import Shifted, TokenShift
from vidformers.attention.time import Time
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained.fit_transformer import backbone


def differences(model, values) -> list[str]:
    """Why the features of a still clip are others than those of its frame in the frame-wise model; empty if they are
    the same.

    In a still clip all frames hold the same tokens, as long as nothing tells them apart. Attention inside a frame is
    then that of the image, of shifted heads too; a branch over time is silent if its last projection is zero. Attention
    over all frames is not that of one: of the patches each key is there t times, of the class token once.

    Args:
        model: abstract, of `build`.
        values: of `Fit`, from an image model.
    """
    root, encoder = backbone(model)
    embedding = encoder.embedding
    found = {}  # in order, each once
    table = values.get((*root, "embedding", "time"))
    if embedding.time is not None and (table is None or table.any()):
        found["its positions of frames are drawn (init.time=zero makes them zero)"] = True
    for place, stage in enumerate(encoder.stages):
        for j, sublayer in enumerate(stage.layers.sublayers):
            at = (*root, "stages", place, "layers", "sublayers", j)
            found |= dict.fromkeys(_of(sublayer, values.get((*at, "out", "kernel")), embedding.grid[0]), True)
    if isinstance(model.readout, TemporalEncoder):
        found["its layers over frames are drawn, though the backbone sees every frame as the image model"] = True
    return list(found)


def _of(sublayer, out, frames):
    """The reasons of one sublayer, `out` being the kernel of its last projection, or None where it is drawn."""
    if isinstance(sublayer, ClassAttention):
        yield "its class token enters late, by class attention, which is drawn"
    ends = sublayer.scheme if isinstance(sublayer, SelfAttention) else sublayer
    if (
        isinstance(ends, TokenShift)
        and ends.boundary == "zero"
        or (isinstance(ends, Shifted) and ends.boundary == "zero" and ends.before + ends.after > 0)
    ):
        yield "beyond the ends of the clip are zeros (model.boundary=keep has the frames at the ends there)"
    if not isinstance(sublayer, SelfAttention):
        return
    if isinstance(sublayer.scheme, (Time, Motion)):
        if sublayer.extra is None and (out is None or out.any()):  # the extra projection starts at zero
            yield "its attention over time is no silent one (init.time=zero makes it so)"
        return
    if sublayer.dictionary is not None and sublayer.dictionary.hybrid != "multi_view":
        yield "its dictionary is drawn"
    if sublayer.kernel != "softmax":
        yield f"its attention has the kernel {sublayer.kernel}, that of images softmax"
    if isinstance(sublayer.scheme, Joint) and frames > 1 and sublayer.class_keys:
        yield "in joint attention each patch is a key once for every frame, the class token once"

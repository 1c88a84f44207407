"""Remarks on facts that a file of weights does not state, so that the config must."""

from vidformers.attention.core import SelfAttention
from vidformers.attention.frame import Frame
from vidformers.layers.mlp import Mlp, gelu
from vidformers.models.encoder import Encoder, MeanReadout
from vidformers.pretrained import layouts
from vidformers.pretrained.roles import patch_encoder

_TANH = ("gelu_fast", "gelu_new", "gelu_pytorch_tanh")  # names of the tanh GELU in Hugging Face's config.json
_SSV2_CLASSES, _KINETICS_CLASSES = (174,), (400, 600)
_SPACE_ONLY = (
    "ViT of timm",
    "TimeSformer of Hugging Face",
)  # layouts of TimeSformer with attention in space only: its authors' names are those of timm


def gelu_remarks(model, weights, metadata) -> list[str]:
    """Returns a remark if the weights use an approximation of GELU and the model has the exact GELU."""
    if not any(getattr(sublayer, "activation", None) is gelu for sublayer in _sublayers(model)):
        return []
    if isinstance(weights, layouts.CvtWeights):
        return [
            "CvT's authors trained with an approximation of GELU, x sigmoid(1.702 x), which differs by up to 0.02 from "
            "the exact GELU of the model and of Hugging Face's CvT. model.gelu=quick sets it."
        ]
    if metadata.get("hidden_act") not in _TANH and weights.layout not in layouts.WITH_TANH:
        return []
    return [
        "The weights use the tanh approximation of GELU, which differs by up to 5e-4 from the exact GELU of the model. "
        "Only the model joint supports it, by model.gelu=tanh."
    ]


def channel_remarks(weights, init) -> list[str]:
    """Returns a remark on the order of the colour channels of TimeSformer's files.

    Its code reads the frames of SSv2 with OpenCV, which gives blue, green, red (retry_load_images in
    timesformer/datasets/utils.py of facebookresearch/TimeSformer), and those of Kinetics as red, green, blue.
    """
    if not weights.layout.startswith("TimeSformer"):
        return []
    classes = weights.head["kernel"].shape[1] if weights.head else None
    if classes not in (*_SSV2_CLASSES, *_KINETICS_CLASSES):
        return [
            "The file does not say in which order its channels are. TimeSformer's files for SSv2 expect "
            "init.channels=bgr, and those for Kinetics init.channels=rgb."
        ]
    name, expected = ("SSv2", "bgr") if classes in _SSV2_CLASSES else ("Kinetics", "rgb")
    if init.channels == expected:
        return []
    return [
        f"The head has the {classes} classes of {name}, and TimeSformer's files for {name} expect "
        f"init.channels={expected}. It is {init.channels}."
    ]


def space_only_remarks(model, weights) -> list[str]:
    """Returns a remark if the weights can be those of a TimeSformer with attention in space only, for a ViT."""
    encoder = patch_encoder(model.encoder)[1]
    if (
        weights.layout not in _SPACE_ONLY
        or not weights.is_image_model
        or not isinstance(encoder, Encoder)
        or not isinstance(model.readout, MeanReadout)
        or not encoder.class_per_frame
        or encoder.averages_before_norm
        or encoder.embedding.grid[0] == 1
    ):
        return []
    is_vit = all(
        type(sublayer) is Mlp or type(sublayer) is SelfAttention and type(sublayer.scheme) is Frame
        for sublayer in _sublayers(model)
    )
    return is_vit * [
        "A TimeSformer with attention in space only has the same arrays as a ViT, but averages the frames before the "
        "final norm. If the file holds one, set model.frame_average=before_norm, model.mean=(0.45, 0.45, 0.45) and "
        "model.std=(0.225, 0.225, 0.225)."
    ]


def _sublayers(model) -> list:
    """Returns the sublayers of the encoder that embeds patches, [] for a ResNet."""
    stages = getattr(patch_encoder(model.encoder)[1], "stages", ())
    return [sublayer for stage in stages for sublayer in stage.layers.sublayers]

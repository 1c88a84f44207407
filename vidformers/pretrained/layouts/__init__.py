"""The layouts of other libraries' weights. Each has a module that converts its arrays to a common structure."""

from vidformers.pretrained.layouts import (  # noqa: F401
    cvt,
    google,
    hugging_face,
    resnet,
    swin,
    timm,
    tokenshift,
    torchvision,
    vtn,
)
from vidformers.pretrained.layouts.google import WITH_TANH
from vidformers.pretrained.layouts.registry import LAYOUTS, read
from vidformers.pretrained.layouts.structure import (
    ArrayReader,
    CvtWeights,
    ResNetWeights,
    SwinWeights,
    TransformerWeights,
    Weights,
)

__all__ = [
    "LAYOUTS",
    "WITH_TANH",
    "ArrayReader",
    "CvtWeights",
    "ResNetWeights",
    "SwinWeights",
    "TransformerWeights",
    "Weights",
    "read",
]

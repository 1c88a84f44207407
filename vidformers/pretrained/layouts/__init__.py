"""The layouts of other libraries' weights. Each has a module that converts its arrays to a common structure."""

from vidformers.pretrained.layouts import google, hugging_face, timm, tokenshift, torchvision, vtn  # noqa: F401
from vidformers.pretrained.layouts.registry import LAYOUTS, read
from vidformers.pretrained.layouts.structure import ArrayReader, SwinWeights, TransformerWeights

__all__ = ["LAYOUTS", "ArrayReader", "SwinWeights", "TransformerWeights", "read"]

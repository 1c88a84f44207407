"""The layouts in which other libraries keep their weights: one file each, all converted to one structure."""

from vidformers.pretrained.layouts import google, hugging_face, timm, tokenshift, torchvision, vtn  # noqa: F401
from vidformers.pretrained.layouts.registry import LAYOUTS, read
from vidformers.pretrained.layouts.structure import ArrayReader, Transformer, Windows

__all__ = ["LAYOUTS", "ArrayReader", "Transformer", "Windows", "read"]

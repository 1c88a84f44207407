"""Weights from other libraries and from our exports: reading files, recognising layouts, fitting them to a model."""

from vidformers.pretrained.fit import Init
from vidformers.pretrained.load import Pretrained, load

__all__ = ["Init", "Pretrained", "load"]

"""Weights of other libraries and of exports: reading files, recognising layouts, and fitting weights to a model."""

from vidformers.pretrained.fit import Init
from vidformers.pretrained.load import Pretrained, load

__all__ = ["Init", "Pretrained", "load"]

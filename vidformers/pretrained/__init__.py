"""Weights of other libraries and of exports: reads files, recognises layouts, and assigns weights to parameters."""

from vidformers.pretrained.assign import Init
from vidformers.pretrained.load import Pretrained, load

__all__ = ["Init", "Pretrained", "load"]

"""Weights from elsewhere: reading their files, knowing their layouts, fitting them to a model here."""

from vidformers.pretrained.fit import Init
from vidformers.pretrained.load import Pretrained, load

__all__ = ["Init", "Pretrained", "load"]

"""TokenShift: class tokens that exchange channels with neighbouring frames."""

from functools import partial

from vidformers.attention.frame import Frame
from vidformers.attention.shifted import TokenShift
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def tokenshift(parts: ModelConfig, *, fold: int = 4, boundary: str = "zero", rngs) -> Classifier:
    """TokenShift: a frame-wise ViT whose class tokens exchange channels with their neighbours twice a block.

    Args:
        fold: 1/fold of the channels come from the frame before, as many from the frame after.
        boundary: as of `msca`.
    """
    shift = partial(TokenShift, parts.width, fold=fold, boundary=boundary)
    stage = parts.stage(parts.depth, shift, parts.attention(Frame()), shift, parts.mlp())
    return parts.classifier(stage, temporal=None, class_per_frame=True, rngs=rngs)

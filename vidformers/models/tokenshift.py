"""TokenShift: a frame-wise ViT whose class tokens exchange channels with the neighbouring frames.

Paper: Zhang et al., "Token Shift Transformer for Video Classification", 2021. The model behaves
as its authors' code.

    depth x [ shift -> frame attention -> shift -> MLP ]

Every frame has a class token, and the head takes the mean of the class tokens. There is no temporal position embedding:
the order of frames enters through the shifts.
"""

from functools import partial

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.shifted import TokenShift
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def tokenshift(config: ModelConfig, *, fold: int = 4, boundary: str = "zero", rngs: nnx.Rngs) -> Classifier:
    """Returns a TokenShift.

    Args:
        fold: 1/fold of the channels of a class token come from the frame before, and 1/fold from the frame after.
        boundary: replaces the missing neighbour of the first and of the last frame: 'keep' takes the values of the
            frame itself, 'zero' zeros, 'wrap' the values of the frame at the other end.
    """
    shift = partial(TokenShift, config.width, fold=fold, boundary=boundary)
    stage = config.stage(config.depth, shift, config.attention(Frame()), shift, config.mlp())
    return config.classifier(stage, temporal_init=None, class_per_frame=True, rngs=rngs)

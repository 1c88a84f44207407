"""ViT, applied to each frame: the baseline of the MSCA paper (Table 2).

Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020.

    depth x [ frame attention -> MLP ]

Every frame has a class token, and the head takes the mean of the class tokens. There is no temporal position embedding,
so the model is blind to the order of frames.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def vit(config: ModelConfig, *, rngs: nnx.Rngs) -> Classifier:
    """Returns a ViT that is applied to each frame."""
    stage = config.stage(config.depth, config.attention(Frame()), config.mlp())
    # temporal_init=None: no temporal position embedding
    return config.classifier(stage, temporal_init=None, class_per_frame=True, rngs=rngs)

"""ViT frame by frame."""

from vidformers.attention.frame import Frame
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def vit(parts: ModelConfig, *, rngs) -> Classifier:
    """ViT frame by frame, features of the frames' class tokens averaged. No temporal table: blind to order."""
    stage = parts.stage(parts.depth, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=None, class_per_frame=True, rngs=rngs)

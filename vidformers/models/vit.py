"""ViT, applied to each frame: the baseline of the MSCA paper (Table 2).

Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020.

    depth x [ frame attention -> MLP ]

Every frame has a class token, and the head takes the mean of the class tokens. There is no temporal position embedding,
so the model is blind to the order of frames.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.errors import require
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def vit(config: ModelConfig, *, frame_average: str = "after_norm", rngs: nnx.Rngs) -> Classifier:
    """Returns a ViT that is applied to each frame.

    Args:
        frame_average: 'after_norm' averages the class tokens of the frames after the final norm. 'before_norm' averages
            them before it, as TimeSformer's model with attention in space only does (forward_features in
            timesformer/models/vit.py of facebookresearch/TimeSformer).
    Raises:
        ConfigError: an unknown choice.
    """
    require(
        frame_average in ("after_norm", "before_norm"),
        f"model.frame_average={frame_average!r} must be after_norm or before_norm.",
    )
    stage = config.stage(config.depth, config.attention(Frame()), config.mlp())
    # temporal_init=None: no temporal position embedding
    return config.classifier(
        stage,
        temporal_init=None,
        class_per_frame=True,
        averages_before_norm=frame_average == "before_norm",
        rngs=rngs,
    )

"""TimeSformer: divided space-time attention."""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.time import Time
from vidformers.layers.embedding import position_init
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def timesformer(parts: ModelConfig, *, starts_as_image: bool = True, rngs) -> Classifier:
    """TimeSformer, divided: time attention without the class token and with `temporal_fc`, then space, then MLP.

    Args:
        starts_as_image: the temporal table starts at zero, as `temporal_fc` does, as in its authors' code: at first the
            model is its image model. False draws the table, from which training without image weights learns sooner.
    """
    time = parts.attention(Time(), class_keys=False, class_queries=False, extra_projection=True)
    stage = parts.stage(parts.depth, time, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=nnx.initializers.zeros if starts_as_image else position_init, rngs=rngs)

"""TimeSformer with divided space-time attention.

Paper: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?", 2021. As its
authors' code behaves.

    depth x [ time attention (patches only) -> temporal_fc -> space attention -> MLP ]

The clip has one class token, which takes no part in time attention. In space attention, each frame updates a copy of
the class token, and the mean of the copies is kept. `joint.py` has the authors' joint model.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.time import Time
from vidformers.layers.embedding import unit_norm_init
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def timesformer(config: ModelConfig, *, starts_as_image: bool = True, rngs: nnx.Rngs) -> Classifier:
    """Returns a TimeSformer with divided attention.

    Args:
        starts_as_image: the temporal position embedding starts at zero, as in the authors' code. Since `temporal_fc`
            (`extra_projection` in the code) starts at zero too, the model first computes what its image model computes.
            False draws the embedding at random, with which training without image weights learns sooner.
    """
    time = config.attention(Time(), class_keys=False, class_queries=False, extra_projection=True)
    stage = config.stage(config.depth, time, config.attention(Frame()), config.mlp())
    return config.classifier(
        stage, temporal_init=nnx.initializers.zeros if starts_as_image else unit_norm_init, rngs=rngs
    )

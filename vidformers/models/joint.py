"""Joint space-time attention: the joint model of TimeSformer's authors, and ViViT's model 1.

Papers: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?", 2021.
Arnab et al., "ViViT: A Video Vision Transformer", 2021.

    depth x [ joint attention -> MLP ]

The clip has one class token. Every token attends to every token of the clip.
"""

from flax import nnx

from vidformers.attention.joint import Joint
from vidformers.errors import require
from vidformers.layers.embedding import unit_norm_init
from vidformers.layers.mlp import gelu as exact_gelu
from vidformers.layers.mlp import gelu_tanh
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier

GELUS = {"exact": exact_gelu, "tanh": gelu_tanh}


def joint(
    config: ModelConfig,
    *,
    patch_frames: int = 1,
    positions: str = "separate",
    gelu: str = "exact",
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a model with joint space-time attention over all tokens of the clip (MEViT eq. 3).

    Args:
        patch_frames: frames in a patch, 2 in ViViT; see `Embedding`.
        positions: 'separate' position embeddings in space and time, or 'joint' as in ViViT; see `Embedding`.
        gelu: 'exact', or 'tanh', the approximation that ViViT uses.
    Raises:
        ConfigError: the patches do not divide the clip, or a choice is unknown.
    """
    require(gelu in GELUS, f"model.gelu={gelu!r} must be one of {', '.join(GELUS)}.")
    stage = config.stage(config.depth, config.attention(Joint()), config.mlp(activation=GELUS[gelu]))
    return config.classifier(
        stage, temporal_init=unit_norm_init, patch_frames=patch_frames, positions=positions, rngs=rngs
    )

"""Joint space-time attention, of TimeSformer's and of ViViT's authors."""

from vidformers.attention.joint import Joint
from vidformers.errors import require
from vidformers.layers.embedding import position_init
from vidformers.layers.mlp import gelu as exact_gelu
from vidformers.layers.mlp import gelu_tanh
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier

GELUS = {"exact": exact_gelu, "tanh": gelu_tanh}


def joint(
    parts: ModelConfig, *, patch_frames: int = 1, positions: str = "separate", gelu: str = "exact", rngs
) -> Classifier:
    """Joint space-time attention over all tokens of the clip (MEViT eq. 3; TimeSformer's and ViViT's joint model).

    Args:
        patch_frames, positions: those of `Embedding`; ViViT has 2 and 'joint'.
        gelu: 'exact', or 'tanh', its approximation, as ViViT has it.
    Raises:
        ConfigError: patches that do not divide the clip, or an unknown choice.
    """
    require(gelu in GELUS, f"model.gelu={gelu!r} must be one of {', '.join(GELUS)}.")
    stage = parts.stage(parts.depth, parts.attention(Joint()), parts.mlp(activation=GELUS[gelu]))
    return parts.classifier(stage, temporal=position_init, patch_frames=patch_frames, positions=positions, rngs=rngs)

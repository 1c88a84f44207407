"""HaViT: hybrid attention, to the patches of the clip and to a dictionary of external tokens, then class attention.

Paper: Li, Zhuang, Gao and Wang, "HaViT: Hybrid-Attention Based Vision Transformer for Video Classification", 2022.

    divided:  depth        x [ time attention -> space attention -> MLP ]     each attention layer with a dictionary
    joint:    depth        x [ joint attention -> MLP ]                       with a dictionary
    the class token is appended
              class_blocks x [ class attention -> MLP of the class token ]

The clip has one class token. The paper gives neither the size of the dictionary, `model.dictionary`, nor the number of
class-attention layers: 112 and 2 agree with the parameters of its Table 6 (26.4 M joint, 34.5 M divided at width 384).
`swin.py` and `cvt.py` are the other models of Table 7 to which the paper adds a dictionary.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.time import Time
from vidformers.errors import require
from vidformers.layers.embedding import unit_norm_init
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Block, Classifier, StageSpec


def havit(
    config: ModelConfig,
    *,
    attention: str = "divided",
    class_blocks: int = 2,
    class_token: str = "late",
    temporal_fc: bool = False,
    share_dictionary: bool = False,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a HaViT.

    Args:
        attention: 'divided' or 'joint'. Joint attention with model.kernel=relu or cosine is the paper's linear
            activation or cosine re-weighting (Table 6).
        class_blocks: class-attention layers after the `depth` hybrid blocks (eq. 8, 9).
        class_token: 'late', appended at class attention (sec. 3.3), or 'input', a key from the first block on (eq. 1).
        temporal_fc: adds `extra_projection` to time attention, as TimeSformer does.
        share_dictionary: the two attention layers of a block share one dictionary. False: each has its own.
    Raises:
        ConfigError: an unknown choice, or a late class token without class attention.
    """
    require(attention in ("divided", "joint"), f"model.attention={attention!r} must be divided or joint.")
    require(class_token in ("late", "input"), f"model.class_token={class_token!r} must be late or input.")
    early_class = class_token == "input"  # the class token takes part in self-attention
    least = 0 if early_class else 1
    require(
        class_blocks >= least,
        f"model.class_blocks={class_blocks} must be at least {least} with model.class_token={class_token}.",
    )
    require(not temporal_fc or attention == "divided", "model.temporal_fc=True needs model.attention=divided.")
    if attention == "divided":
        time = config.attention(Time(), class_keys=early_class, class_queries=False, extra_projection=temporal_fc)
        attentions = [time, config.attention(Frame(), class_keys=early_class, class_queries=early_class)]
    else:
        attentions = [config.attention(Joint(), class_keys=early_class, class_queries=early_class)]

    def block(rngs: nnx.Rngs) -> Block:
        shared = config.make_dictionary(rngs) if share_dictionary else None
        return Block([*(make(rngs, shared) for make in attentions), config.mlp()(rngs=rngs)])

    return config.classifier(
        StageSpec(block, config.depth),
        config.stage(
            class_blocks, config.class_attention(), config.mlp(updates_patches=False), late_class=not early_class
        ),
        temporal_init=unit_norm_init,
        rngs=rngs,
    )

"""HaViT: hybrid attention with a dictionary of external tokens."""

from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.time import Time
from vidformers.errors import require
from vidformers.layers.embedding import position_init
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Block, Classifier, StageSpec


def havit(
    parts: ModelConfig,
    *,
    attention: str = "divided",
    class_blocks: int = 2,
    class_token: str = "late",
    temporal_fc: bool = False,
    share_dictionary: bool = False,
    rngs,
) -> Classifier:
    """HaViT: hybrid attention, of patches to patches and to a dictionary of external tokens, then class attention.

    The paper's size of the dictionary, `Parts.dictionary`, and its number of class-attention layers are unknown: 112
    and 2 agree with the parameters of its Table 6 (26.4 M joint, 34.5 M divided at width 384).

    Args:
        attention: 'divided', time then space, or 'joint'; with `Parts.kernel` relu or cosine, joint attention is the
            paper's linear activation or cosine re-weighting (Table 6).
        class_blocks: class-attention layers after the `depth` hybrid blocks (eq. 8, 9).
        class_token: 'late', entering with class attention (sec. 3.3), or 'input', a key from the start (eq. 1).
        temporal_fc: TimeSformer's extra projection after the time attention.
        share_dictionary: one dictionary a block for its two attentions, rather than one each.
    Raises:
        ConfigError: an unknown choice, or a late class token without class attention.
    """
    require(attention in ("divided", "joint"), f"model.attention={attention!r} must be divided or joint.")
    require(class_token in ("late", "input"), f"model.class_token={class_token!r} must be late or input.")
    require(
        class_blocks >= (class_token == "late"),
        f"model.class_blocks={class_blocks} must be at least {int(class_token == 'late')} with "
        f"model.class_token={class_token}.",
    )
    require(not temporal_fc or attention == "divided", "model.temporal_fc=True needs model.attention=divided.")
    early = class_token == "input"
    whole = parts.attention(Frame() if attention == "divided" else Joint(), class_keys=early, class_queries=early)
    time = parts.attention(Time(), class_keys=early, class_queries=False, extra_projection=temporal_fc)
    attentions = (time, whole) if attention == "divided" else (whole,)

    def block(rngs):
        shared = parts.make_dictionary(rngs) if share_dictionary else None
        return Block([*(make(rngs, shared) for make in attentions), parts.mlp()(rngs=rngs)])

    return parts.classifier(
        StageSpec(block, parts.depth),
        parts.stage(class_blocks, parts.class_attention(), parts.mlp(patches=False), late_class=not early),
        temporal=position_init,
        rngs=rngs,
    )

"""MEViT: motion attention and class attention."""

from vidformers.attention.frame import Frame
from vidformers.attention.motion import Motion
from vidformers.errors import require
from vidformers.layers.embedding import position_init
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def mevit(
    parts: ModelConfig,
    *,
    block_size: int = 2,
    motion_blocks: int = 7,
    class_blocks: int = 1,
    order: str = "motion_space",
    class_in_motion: bool = True,
    class_queries_motion: bool = False,
    temporal_fc: bool = False,
    rngs,
) -> Classifier:
    """MEViT: `depth` self-attention blocks, the last `motion_blocks` with motion attention, then class attention.

    With `class_blocks` > 0 the class token enters after the self-attention blocks (MEViT sec. 3.4); with 0 it is there
    from the input on, as in the baseline of the paper's Tables 1 and 3.

    Args:
        block_size: M, the side of a motion block in patches (Table 1).
        motion_blocks: L_t (Table 3); `depth` minus L_t blocks at the bottom attend in space only.
        class_blocks: class-attention layers (Table 2: 9+3, 10+2, 11+1, 12+1).
        order: 'motion_space' as the equations apply, or 'space_motion' as the end of sec. 3 says. With the latter, no
            class_blocks and no class query in motion, nothing reads what the last motion sublayer writes.
        class_in_motion: the class token is a key of motion attention (eq. 8); False as TimeSformer's code.
        class_queries_motion: it also attends there; with M as large as the grid that is complete joint attention.
        temporal_fc: TimeSformer's extra projection after the motion attention, not in the equations.
    Raises:
        ConfigError: more motion blocks than blocks, a negative count, or an unknown order.
    """
    require(
        0 <= motion_blocks <= parts.depth,
        f"model.motion_blocks={motion_blocks} must be between 0 and model.depth={parts.depth}.",
    )
    require(class_blocks >= 0, f"model.class_blocks={class_blocks} must be at least 0.")
    require(order in ("motion_space", "space_motion"), f"model.order={order!r} must be motion_space or space_motion.")
    require(
        class_in_motion or not class_queries_motion, "model.class_queries_motion=True needs model.class_in_motion=True."
    )
    early = class_blocks == 0  # the class token is there while patches attend to each other
    space = parts.attention(Frame(), class_keys=early, class_queries=early)
    motion = parts.attention(
        Motion(block_size),
        class_keys=early and class_in_motion,
        class_queries=early and class_queries_motion,
        extra_projection=temporal_fc,
    )
    both = (motion, space) if order == "motion_space" else (space, motion)
    return parts.classifier(
        parts.stage(parts.depth - motion_blocks, space, parts.mlp()),
        parts.stage(motion_blocks, *both, parts.mlp()),
        parts.stage(class_blocks, parts.class_attention(), parts.mlp(patches=False), late_class=True),
        temporal=position_init,
        rngs=rngs,
    )

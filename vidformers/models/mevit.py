"""MEViT: motion attention in the last blocks, then class attention.

Paper: Li and Zhuang, "MEViT: Motion Enhanced Video Transformer for Video Classification", 2022.

    (depth - motion_blocks) x [ space attention -> MLP ]
    motion_blocks           x [ motion attention -> space attention -> MLP ]
    the class token is appended
    class_blocks            x [ class attention -> MLP of the class token ]

Space attention is attention inside a frame (scheme `Frame`). The clip has one class token. With class_blocks=0 the
class token is appended at the input instead and takes part in self-attention, as in the baseline of Tables 1 and 3.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.motion import Motion
from vidformers.errors import require, require_range
from vidformers.layers.embedding import unit_norm_init
from vidformers.models.config import MAX_DEPTH, ModelConfig
from vidformers.models.encoder import Classifier


def _check_motion_blocks(motion_blocks: int, depth: int) -> None:
    require(
        0 <= motion_blocks <= depth,
        f"model.motion_blocks={motion_blocks} must be between 0 and model.depth={depth}. Set "
        f"model.motion_blocks={round(depth * 7 / 11)}, about two thirds.",
    )


def mevit(
    config: ModelConfig,
    *,
    block_size: int = 2,
    motion_blocks: int = 7,
    class_blocks: int = 1,
    order: str = "motion_space",
    class_in_motion: bool = True,
    class_queries_motion: bool = False,
    temporal_fc: bool = False,
    patch_frames: int = 1,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a MEViT.

    Args:
        block_size: M, the side of a motion block in patches (Table 1).
        motion_blocks: L_t, the number of blocks with motion attention (Table 3). These are the last of the `depth`
            blocks; the blocks before them have space attention only.
        class_blocks: number of class-attention blocks, in addition to `depth` (sec. 3.4; Table 2 has 9+3, 10+2, 11+1
            and 12+1).
        order: 'motion_space' as in the equations, or 'space_motion' as at the end of sec. 3. With 'space_motion',
            class_blocks=0 and class_queries_motion=False, the last motion sublayer does not affect the logits: it
            updates only patches, and no class token reads them afterwards.
        class_in_motion: with class_blocks=0, the class token is a key of motion attention (eq. 8). False: TimeSformer.
        class_queries_motion: the class token is also a query of motion attention, with class_blocks=0. With M as large
            as the grid, motion attention is then joint attention.
        temporal_fc: adds a linear layer that starts at zero after the output projection of motion attention
            (`extra_projection`), as TimeSformer does in time attention. The equations do not have this layer.
        patch_frames: frames in a patch, 1 in the paper; see `Embedding`. With 2, a patch shows motion by itself.
    Raises:
        ConfigError: more motion blocks than blocks, a negative count, an unknown order, or class_queries_motion without
            class_in_motion.
    """
    _check_motion_blocks(motion_blocks, config.depth)
    require_range("model.class_blocks", class_blocks, 0, MAX_DEPTH)
    require(order in ("motion_space", "space_motion"), f"model.order={order!r} must be motion_space or space_motion.")
    require(
        class_in_motion or not class_queries_motion, "model.class_queries_motion=True needs model.class_in_motion=True."
    )
    early_class = class_blocks == 0  # the class token takes part in self-attention
    space = config.attention(Frame(), class_keys=early_class, class_queries=early_class)
    motion = config.attention(
        Motion(block_size),
        class_keys=early_class and class_in_motion,
        class_queries=early_class and class_queries_motion,
        extra_projection=temporal_fc,
    )
    return config.classifier(
        config.stage(config.depth - motion_blocks, space, config.mlp()),
        config.stage(motion_blocks, *((motion, space) if order == "motion_space" else (space, motion)), config.mlp()),
        # With class_blocks=0 this stage is left out, so the encoder adds the class token at the input.
        config.stage(class_blocks, config.class_attention(), config.mlp(updates_patches=False), late_class=True),
        temporal_init=unit_norm_init,
        patch_frames=patch_frames,
        rngs=rngs,
    )

"""MSCA: attention to neighbouring frames by shifted heads or patches.

Paper: Hashiguchi and Tamaki, "Vision Transformer with Cross-attention by Temporal Shift for Efficient Action
Recognition", 2022.

    (depth - shifted_blocks) x [ frame attention -> MLP ]
    shifted_blocks           x [ shifted attention -> MLP ]

Every frame has a class token, and the head takes the mean of the class tokens. There is no temporal position embedding:
the order of frames enters through the shifted queries, keys and values. Every variant costs as much as ViT.
"""

from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.shifted import Shifted
from vidformers.errors import require
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def msca(
    config: ModelConfig,
    *,
    direction: str = "heads",
    moved: str = "KV",
    before: int = 1,
    after: int = 1,
    shifted_blocks: int | None = None,
    boundary: str = "keep",
    placement: str = "first",
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a frame-wise ViT in which some heads or patches attend to the neighbouring frames.

    Args:
        direction: 'heads' (Tables 1-3) or 'patches' (Tables 4 and 5).
        moved: which of queries, keys and values come from the neighbour: Q, K, V, QK, QV, KV or QKV (Tables 2, 5).
        before: number of heads or tokens that take them from the frame before (h_b, N_b). The first token is the class
            token.
        after: number of heads or tokens that take them from the frame after (h_f, N_f).
        shifted_blocks: m, the number of blocks at the end that shift (Table 3); None is all.
        boundary: replaces the missing neighbour of the first and of the last frame: 'keep' takes the values of the
            frame itself, 'zero' zeros, 'wrap' the values of the frame at the other end. The paper does not
            define it. The authors' code uses zeros.
        placement: which heads are shifted, 'first': the first `before` heads, then the next `after` heads (eq. 17), or
            'ends': the last `before` heads and the first `after` heads, as in the authors' code.
    Raises:
        ConfigError: more shifted heads or tokens than there are, more shifted blocks than blocks, an unknown choice.
    """
    shifted = Shifted(direction, moved, before, after, boundary, placement)
    count = config.heads if direction == "heads" else 1 + (config.image_size // config.patch_size) ** 2
    require(
        before + after <= count,
        f"model.before={before} plus model.after={after} must be at most {count}, the number of {direction}. Set "
        f"model.before={count // 2} and model.after={count // 2}, or less.",
    )
    blocks = config.depth if shifted_blocks is None else shifted_blocks
    require(
        0 <= blocks <= config.depth,
        f"model.shifted_blocks={shifted_blocks} must be between 0 and model.depth={config.depth}. None is all blocks.",
    )
    return config.classifier(
        config.stage(config.depth - blocks, config.attention(Frame()), config.mlp()),
        config.stage(blocks, config.attention(shifted), config.mlp()),
        temporal_init=None,
        class_per_frame=True,
        rngs=rngs,
    )

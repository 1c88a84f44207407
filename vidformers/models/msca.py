"""MSCA: attention to neighbouring frames by shifted heads or patches."""

from vidformers.attention.frame import Frame
from vidformers.attention.shifted import Shifted
from vidformers.errors import require
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier


def msca(
    parts: ModelConfig,
    *,
    direction: str = "heads",
    moved: str = "KV",
    before: int = 1,
    after: int = 1,
    shifted_blocks: int | None = None,
    boundary: str = "keep",
    rngs,
) -> Classifier:
    """MSCA: a frame-wise ViT in which some heads or patches attend to the neighbouring frames. No temporal table.

    Args:
        direction: 'heads' (Tables 1-3) or 'patches' (Tables 4 and 5).
        moved: which of queries, keys and values come from the neighbour: Q, K, V, QK, QV, KV or QKV (Tables 2, 5).
        before, after: how many heads or tokens look at the frame before and after (h_b, h_f; N_b, N_f). Among tokens
            the class token is the first.
        shifted_blocks: m, the last so many blocks (Table 3); None is all. The others attend inside their frame.
        boundary: what stands for the frame before the first and after the last: 'keep', 'zero' or 'wrap'. The paper
            does not say; TokenShift's code, which it builds on, takes zeros.
    Raises:
        ConfigError: more heads or tokens shifted than there are, more shifted blocks than blocks, an unknown choice.
    """
    attention = Shifted(direction, moved, before, after, boundary)
    count = parts.heads if direction == "heads" else 1 + (parts.image_size // parts.patch_size) ** 2
    require(
        before + after <= count,
        f"model.before={before} and model.after={after} are more than the {count} {direction} there are.",
    )
    blocks = parts.depth if shifted_blocks is None else shifted_blocks
    require(
        0 <= blocks <= parts.depth,
        f"model.shifted_blocks={shifted_blocks} must be between 0 and model.depth={parts.depth}.",
    )
    return parts.classifier(
        parts.stage(parts.depth - blocks, parts.attention(Frame()), parts.mlp()),
        parts.stage(blocks, parts.attention(attention), parts.mlp()),
        temporal=None,
        class_per_frame=True,
        rngs=rngs,
    )

"""HaViT's dictionary of external tokens: learned keys and values that queries attend to beside those of the clip."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.kernels import KeyValues
from vidformers.errors import require

HYBRIDS = ("combined", "simplified", "multi_view", "split_heads")


class Dictionary(nnx.Module):
    """n keys and values of width d that do not depend on the input. Neither a norm nor a projection acts on them.

    Args:
        size: n, at least 1. The paper does not give n; 112 agrees with the parameter counts of its Table 6.
        width: d.
        heads: h.
        hybrid: how internal attention (the clip) and external attention (the dictionary) are combined (HaViT sec. 3.2,
            Table 5).
            'combined': combined correlation, one normalisation over the keys of clip and dictionary (eq. 7).
            'simplified': the sum of the two attentions.
            'multi_view': 2h heads, h for each attention, and an output projection from 2d.
            'split_heads': the first half of the heads attends to the clip, the second half to the dictionary.
        scale: standard deviation of the entries at the start. Small keys have logits near 0, and so about the weight of
            an average key of the clip. `python -m benchmarks.dictionary` prints how much attention the entries take.

    Raises:
        ConfigError: the size is below 1, the hybrid is unknown, 'split_heads' has an odd number of heads, or the scale
            is negative.
    """

    def __init__(
        self, size: int, width: int, heads: int, *, hybrid: str = "combined", scale: float = 0.02, rngs: nnx.Rngs
    ):
        require(
            size >= 1,
            f"model.dictionary={size} is too small. Set at least 1 entry, or 0 for a model without a dictionary.",
        )
        require(hybrid in HYBRIDS, f"model.hybrid={hybrid!r} is unknown. Use one of {', '.join(HYBRIDS)}.")
        require(
            hybrid != "split_heads" or heads % 2 == 0,
            f"model.hybrid=split_heads halves the heads, but model.heads={heads} is odd. Set an even model.heads.",
        )
        require(scale >= 0, f"model.dictionary_scale={scale} must be at least 0.")
        self.heads, self.hybrid = heads, hybrid
        entry_init = nnx.initializers.normal(scale)
        self.keys = nnx.Param(entry_init(rngs.params(), (size, width)))
        self.values = nnx.Param(entry_init(rngs.params(), (size, width)))

    def hybrid_attention(self, kernel, q, internal: KeyValues) -> jax.Array:
        """Returns attention of q (... q h e) to the clip, `internal`, and to the dictionary: (... q h e).

        With 'multi_view', returns (... q 2h e), the heads of internal attention first.
        """
        keys, values = (
            rearrange(x[...], "m (h e) -> m h e", h=self.heads).astype(q.dtype) for x in (self.keys, self.values)
        )
        external = KeyValues(keys, values)
        if self.hybrid == "combined":
            return kernel(q, [internal, external])
        internal_out, external_out = kernel(q, [internal]), kernel(q, [external])
        if self.hybrid == "simplified":
            return internal_out + external_out
        if self.hybrid == "split_heads":
            half = self.heads // 2
            internal_out, external_out = internal_out[..., :half, :], external_out[..., half:, :]
        return jnp.concatenate([internal_out, external_out], axis=-2)


def head_multiplier(dictionary: Dictionary | None) -> int:
    """Returns the number of output heads for each input head of attention."""
    return 2 if dictionary is not None and dictionary.hybrid == "multi_view" else 1

"""HaViT's external tokens: keys and values that belong to no clip, learned, read beside the tokens of the clip."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.kernels import Source
from vidformers.errors import require

HYBRIDS = ("combined", "simplified", "multi_view", "split_heads")
entry_init = nnx.initializers.normal(0.02)


class Dictionary(nnx.Module):
    """n keys and values of width d, independent of the input; queries are compared with the keys as they are.

    Args:
        size: n, at least 1. The paper gives no number; 112 agrees with the parameters of its Table 6.
        hybrid: how internal and external attention meet (HaViT sec. 3.2, Table 5).
            'combined': combined correlation, one normalisation over the clip's keys and the dictionary (eq. 7).
            'simplified': the sum of two attentions of one query.
            'multi_view': 2h heads, h on each side, joined by an output projection from 2d.
            'split_heads': the first half of the heads reads the clip, the second the dictionary.
    Raises:
        ConfigError: a size below 1, an unknown hybrid, or an odd number of heads to be split.
    """

    def __init__(self, size: int, width: int, heads: int, *, hybrid: str = "combined", rngs: nnx.Rngs):
        require(size >= 1, f"model.dictionary={size} must be at least 0.")
        require(hybrid in HYBRIDS, f"model.hybrid={hybrid!r} must be one of {', '.join(HYBRIDS)}.")
        require(
            hybrid != "split_heads" or heads % 2 == 0,
            f"model.hybrid=split_heads halves the heads, but model.heads={heads} is odd.",
        )
        self.heads, self.hybrid = heads, hybrid
        self.keys = nnx.Param(entry_init(rngs.params(), (size, width)))
        self.values = nnx.Param(entry_init(rngs.params(), (size, width)))

    def attend(self, kernel, q, internal: Source) -> jax.Array:
        """(... h q e) -> (... h q e), or (... 2h q e) of 'multi_view', internal heads first."""
        keys, values = (
            rearrange(x[...], "m (h e) -> h m e", h=self.heads).astype(q.dtype) for x in (self.keys, self.values)
        )
        external = Source(keys, values)
        if self.hybrid == "combined":
            return kernel(q, [internal, external])
        internal, external = kernel(q, [internal]), kernel(q, [external])
        if self.hybrid == "simplified":
            return internal + external
        if self.hybrid == "split_heads":
            half = self.heads // 2
            internal, external = internal[..., :half, :, :], external[..., half:, :, :]
        return jnp.concatenate([internal, external], axis=-3)


def head_multiplier(dictionary: Dictionary | None) -> int:
    """Heads that come out of attention for one that goes in."""
    return 2 if dictionary is not None and dictionary.hybrid == "multi_view" else 1

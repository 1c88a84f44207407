"""HaViT's dictionary of external tokens: learned keys and values that queries attend to beside those of the clip."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.kernels import KeyValues
from vidformers.errors import require
from vidformers.parallel.target import target_platform

HYBRIDS = ("combined", "simplified", "multi_view", "split_heads")
entry_init = nnx.initializers.normal(0.02)


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

    Raises:
        ConfigError: the size is below 1, the hybrid is unknown, or 'split_heads' has an odd number of heads.
    """

    def __init__(self, size: int, width: int, heads: int, *, hybrid: str = "combined", rngs: nnx.Rngs):
        require(
            size >= 1,
            f"model.dictionary={size} is too small. Set at least 1 entry, or 0 for a model without a dictionary.",
        )
        require(hybrid in HYBRIDS, f"model.hybrid={hybrid!r} is unknown. Use one of {', '.join(HYBRIDS)}.")
        require(
            hybrid != "split_heads" or heads % 2 == 0,
            f"model.hybrid=split_heads halves the heads, but model.heads={heads} is odd. Set an even model.heads.",
        )
        self.heads, self.hybrid = heads, hybrid
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
            # One set of keys takes one product for its scores and weights, and two sets take three (`kernels.softmax`).
            # Estimated for windows, which have a bias, and not for other groups (benchmarks/NOTES.md).
            is_joined = target_platform() == "tpu" and internal.bias is not None
            return kernel(q, [_joined(internal, external)] if is_joined else [internal, external])
        internal_out, external_out = kernel(q, [internal]), kernel(q, [external])
        if self.hybrid == "simplified":
            return internal_out + external_out
        if self.hybrid == "split_heads":
            half = self.heads // 2
            internal_out, external_out = internal_out[..., :half, :], external_out[..., half:, :]
        return jnp.concatenate([internal_out, external_out], axis=-2)


def _joined(internal: KeyValues, external: KeyValues) -> KeyValues:
    """Returns the keys and values of groups of the clip (... k h e), each followed by those of the dictionary."""
    lead, num_external = internal.k.shape[:-3], external.k.shape[-3]

    def append(x, shared):
        # In float32, because the gradient of the dictionary is a sum over all groups.
        shared = jnp.broadcast_to(shared.astype(jnp.promote_types(x.dtype, jnp.float32)), (*lead, *shared.shape))
        return jnp.concatenate([x, shared.astype(x.dtype)], axis=-3)

    def pad(x, value):
        return None if x is None else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, num_external)], constant_values=value)

    k, v = append(internal.k, external.k), append(internal.v, external.v)
    return KeyValues(k, v, pad(internal.mask, True), pad(internal.bias, 0))


def head_multiplier(dictionary: Dictionary | None) -> int:
    """Returns the number of output heads for each input head of attention."""
    return 2 if dictionary is not None and dictionary.hybrid == "multi_view" else 1

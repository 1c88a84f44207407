"""HaViT's dictionary of external tokens: learned keys and values that queries attend to beside those of the clip."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.kernels import KeyValues
from vidformers.errors import require
from vidformers.layers.linear import Linear, glorot
from vidformers.layers.mlp import gelu

HYBRIDS = ("combined", "simplified", "multi_view", "split_heads")


class ExternalMlp(nnx.Module):
    """x + W_2 GELU(W_1 LN x), the feed-forward network of HaViT eq. 6 on the result of external attention (... d)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.wide = Linear(width, hidden, kernel_init=glorot, rngs=rngs)
        self.out = Linear(hidden, width, kernel_init=glorot, rngs=rngs)

    def __call__(self, x):
        wide, out = (linear.for_several_calls(x.dtype) for linear in (self.wide, self.out))
        return x + out(gelu(wide(self.norm(x).astype(x.dtype))))


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
        mlp_ratio: hidden width of an `ExternalMlp` on the result of external attention, its heads side by side, divided
            by the width of this result: the last line of eq. 6. 0: none. It has no dropout.

    Raises:
        ConfigError: the size is below 1, the hybrid is unknown, 'split_heads' has an odd number of heads, the scale is
            negative, or 'combined', which has no result of external attention alone, has an `ExternalMlp`.
    """

    def __init__(
        self,
        size: int,
        width: int,
        heads: int,
        *,
        hybrid: str = "combined",
        scale: float = 0.02,
        mlp_ratio: int = 0,
        rngs: nnx.Rngs,
    ):
        require(
            size >= 1,
            f"model.dictionary={size} is too small. Set at least 1 entry, or 0 for a model without a dictionary.",
        )
        require(hybrid in HYBRIDS, f"model.hybrid={hybrid!r} is unknown. Use one of {', '.join(HYBRIDS)}.")
        require(
            hybrid != "split_heads" or heads % 2 == 0,
            f"model.hybrid=split_heads halves the heads, but model.heads={heads} is odd. Set an even model.heads "
            "that divides model.width.",
        )
        require(scale >= 0, f"model.dictionary_scale={scale} must be at least 0.")
        require(
            not mlp_ratio or hybrid != "combined",
            "model.external_mlp=True acts on the result of external attention alone, which model.hybrid=combined does "
            "not have. Set model.hybrid to simplified, multi_view or split_heads.",
        )
        self.heads, self.hybrid = heads, hybrid
        entry_init = nnx.initializers.normal(scale)
        self.keys = nnx.Param(entry_init(rngs.params(), (size, width)))
        self.values = nnx.Param(entry_init(rngs.params(), (size, width)))
        self.mlp = nnx.data(None)
        if mlp_ratio:
            external_width = width // 2 if hybrid == "split_heads" else width
            self.mlp = ExternalMlp(external_width, mlp_ratio * external_width, rngs=rngs)

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
        if self.hybrid == "split_heads":
            half = self.heads // 2
            internal_out, external_out = internal_out[..., :half, :], external_out[..., half:, :]
        if self.mlp is not None:
            heads = external_out.shape[-2]
            external_out = self.mlp(rearrange(external_out, "... h e -> ... (h e)"))
            external_out = rearrange(external_out, "... (h e) -> ... h e", h=heads)
        if self.hybrid == "simplified":
            return internal_out + external_out
        return jnp.concatenate([internal_out, external_out], axis=-2)


class SharedDictionary(Dictionary):
    """The place of a dictionary that all layers of a stage share. It has no parameters.

    The stage has the dictionary, under the name `name`, and puts it here when a layer runs (`models.encoder.Stage`).

    Args:
        name: of the dictionary in its stage.
        hybrid: that of the dictionary.
    """

    def __init__(self, name: str, hybrid: str):
        self.name, self.hybrid = name, hybrid


def head_multiplier(dictionary: Dictionary | None) -> int:
    """Returns the number of output heads for each input head of attention."""
    return 2 if dictionary is not None and dictionary.hybrid == "multi_view" else 1

"""The MLP sublayer and its activations."""

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.layers.linear import Linear, glorot
from vidformers.layers.tokens import LayerRng, Tokens, add_branch, kept_elements, split_rng


def keeping_input(function):
    """Returns an elementwise `function` whose backward pass keeps its input alone, and rematerialises the rest.

    `jax.checkpoint` does this too, but puts a barrier before the backward pass. XLA can then not fuse it with the
    product before it, which costs a tenth of an MLP on TPUs (benchmarks/NOTES.md).
    """
    call = jax.custom_vjp(function)
    call.defvjp(lambda x: (function(x), x), lambda x, cotangent: jax.vjp(function, x)[1](cotangent))
    return call


@keeping_input
def gelu(x):
    """Returns the exact GELU, x Phi(x).

    The backward pass keeps x alone, which saves 40% of the memory of an MLP. XLA computes erf faster than the erfc of
    `jax.nn.gelu`. In float32 the rounding error of 1 + erf is negligible.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@keeping_input
def gelu_tanh(x):
    """Returns the approximation of GELU by tanh, with an error up to 5e-4. ViViT was trained with it."""
    return jax.nn.gelu(x, approximate=True)


@keeping_input
def gelu_quick(x):
    """Returns x sigmoid(1.702 x), the approximation of GELU called QuickGELU. CvT was trained with it."""
    return x * jax.nn.sigmoid(1.702 * x)


def activation_with_dropout(activation, x, rate: float, rng: LayerRng | None, class_rng: LayerRng | None = None):
    """Returns `dropout(activation(x), ...)` of an activation that is zero at -10,000, as is its derivative.

    Elements to be dropped get this value before the activation, so that the backward pass needs x alone. Otherwise it
    would also read which elements were kept.
    """
    if rng is None or rate == 0.0:
        return activation(x)
    keep, share = kept_elements(x.shape, rate, rng, class_rng)
    return (activation(_hide(x, keep)) / share).astype(x.dtype)


@jax.custom_vjp
def _hide(x, keep):
    return jnp.where(keep, x, jnp.asarray(-1e4, x.dtype))


# The cotangent is zero where x is hidden.
_hide.defvjp(lambda x, keep: (_hide(x, keep), None), lambda _, cotangent: (cotangent, None))


class Mlp(nnx.Module):
    """tokens + W_2 GELU(W_1 LN tokens) (MEViT eq. 5).

    Args:
        width: d.
        hidden: width of the hidden layer.
        updates_patches: whether patches are updated. If not, only class tokens are.
        norm_epsilon: epsilon of the norm.
        activation: the activation function. It and its derivative are zero at -10,000.
        dropout: rate of dropout after the activation and on the branch.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        updates_patches: bool = True,
        norm_epsilon: float = 1e-6,
        activation=gelu,
        dropout: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.updates_patches, self.dropout, self.activation = updates_patches, dropout, activation
        self.takes_joined = "any" if updates_patches else None
        self.norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.wide = Linear(width, hidden, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, width, kernel_init=glorot, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        branch_rng, patch_rng, class_rng = split_rng(rng, 3)

        wide, out = (linear.for_several_calls(tokens.patches.dtype) for linear in (self.wide, self.out))

        def apply(x, *rngs):
            return out(activation_with_dropout(self.activation, wide(self.norm(x)), self.dropout, *rngs))

        patches = class_tokens = None
        if self.updates_patches:
            patches = apply(tokens.patches, patch_rng, class_rng if tokens.class_rows else None)
        if tokens.class_tokens.shape[1]:
            class_tokens = apply(tokens.class_tokens, class_rng)
        return add_branch(tokens, (patches, class_tokens), self.dropout, branch_rng)

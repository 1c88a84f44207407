"""The MLP sublayer and its activations."""

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.layers.linear import Linear, glorot
from vidformers.layers.tokens import Noise, Tokens, add_branch, dropout


@jax.checkpoint
def gelu(x):
    """x Phi(x), exact. The backward pass keeps x alone and computes the rest again: of an Mlp's memory, 40% less. By
    erf, which XLA computes faster than the erfc of `jax.nn.gelu`; in float32, where 1 + erf loses nothing that counts.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@jax.checkpoint
def gelu_tanh(x):
    """Its approximation by tanh, which differs by up to 5e-4 and which ViViT was trained with."""
    return jax.nn.gelu(x, approximate=True)


class Mlp(nnx.Module):
    """tokens + W_2 GELU(W_1 LN tokens), on patches and class tokens alike, or on class tokens alone (MEViT eq. 5)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        patches: bool = True,
        norm_epsilon: float = 1e-6,
        activation=gelu,
        dropout: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patches, self.dropout, self.activation = patches, dropout, activation
        self.norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.wide = Linear(width, hidden, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, width, kernel_init=glorot, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        branch, *inner = noise.split(3) if noise is not None else (None, None, None)

        def apply(x, noise):
            return self.out(dropout(self.activation(self.wide(self.norm(x))), self.dropout, noise))

        patches = apply(tokens.patches, inner[0]) if self.patches else None
        classes = apply(tokens.class_tokens, inner[1]) if tokens.class_tokens.shape[1] else None
        return add_branch(tokens, patches, classes, self.dropout, branch)

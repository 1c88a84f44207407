"""Linear maps that follow each other, made one for as long as a program runs."""

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.core import SelfAttention


def fuse_projections(model):
    """The model, in which W_O and a map after it (TimeSformer's `temporal_fc`) are one map, in place.

    Their product costs as much as width tokens would, and saves a product with every token, forward and backward, where
    the parameters' own gradients come back through it. What the model computes stays the same, but for rounding.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SelfAttention) and module.extra is not None:
            out, extra = module.out, module.extra  # of stacked layers, or of one
            bias = jnp.einsum("...i,...ij->...j", out.bias[...], extra.kernel[...]) + extra.bias[...]
            out.kernel[...], out.bias[...] = jnp.matmul(out.kernel[...], extra.kernel[...]), bias
            module.extra = nnx.data(None)
    return model

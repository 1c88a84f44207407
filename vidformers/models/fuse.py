"""Fuses consecutive linear maps into one, to save multiply-adds while a program runs."""

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.core import SelfAttention


def fuse_projections(model):
    """Replaces W_O and the map after it (TimeSformer's `temporal_fc`) by their product, in place; returns the model.

    Called within the differentiated function, so the gradients of both maps flow through the product. The product costs
    as much as applying a map to `width` tokens, and saves one map for every token in the forward and the backward pass.
    The output of the model stays the same up to rounding.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SelfAttention) and module.extra is not None:
            out, extra = module.out, module.extra  # leading axis: the stacked layers, if any
            assert out.bias is not None and extra.bias is not None
            bias = jnp.einsum("...i,...ij->...j", out.bias[...], extra.kernel[...]) + extra.bias[...]
            out.kernel[...], out.bias[...] = jnp.matmul(out.kernel[...], extra.kernel[...]), bias
            module.extra = nnx.data(None)
    return model

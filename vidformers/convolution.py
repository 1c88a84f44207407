"""Convolutions of frames with what batch normalisation is once its statistics are fixed, and averages over cells."""

from functools import partial

import jax
import jax.numpy as jnp
from einops import reduce
from flax import nnx

from vidformers.sharding import whole


def _convolve(x, kernel, *how, **more):
    return jax.lax.conv_general_dilated(x, whole(kernel), *how, **more)


Conv = partial(nnx.Conv, conv_general_dilated=_convolve)


class Convolution(nnx.Module):
    """A k x k convolution of each frame without bias, then a scale and bias a channel: (... y x c) -> (... y/s x/s d).

    Grids round up. Published ResNet and CvT have batch norm there, which ties a clip to its neighbours in the batch and
    to statistics beside the parameters. Here it is what batch norm is in evaluation: of a loaded model, weight /
    sqrt(var + eps) and bias - mean * scale. As many parameters, trained like any other; small batches and accumulation
    change nothing.

    Args:
        inputs, outputs: channels c and d.
        size, stride: k, odd, and s.
        groups: of channels that are convolved apart; as many as channels is a depthwise convolution.
        scale: that each channel starts with.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, scale: float = 1.0,
                 kernel_init=nnx.initializers.lecun_normal(), dtype=jnp.float32, rngs: nnx.Rngs):
        self.convolution = Conv(inputs, outputs, (size, size), strides=stride, padding=size // 2,
                                feature_group_count=groups, use_bias=False, kernel_init=kernel_init, dtype=dtype,
                                rngs=rngs)
        self.scale = nnx.Param(jnp.full(outputs, scale))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        x = self.convolution(x)
        return x * self.scale.astype(x.dtype) + self.bias.astype(x.dtype)


def mean_pool(x, stride: int):
    """(... y x d) -> (... y/s x/s d), averaged over cells of stride x stride; grids round up, and what a side leaves
    over is averaged over as many as there are when the stride is 2."""
    # Not by pooling: on several devices XLA (jaxlib 0.10) gets a window over a side of 1 wrong.
    below, right = (-side % stride for side in x.shape[-3:-1])
    even = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, below), (0, right), (0, 0)], mode="edge")
    return reduce(even, "... (y i) (x j) d -> ... y x d", "mean", i=stride, j=stride)

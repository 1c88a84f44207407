"""Convolutions of frames with what batch normalisation is once its statistics are fixed, and averages over cells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx

from vidformers.parallel.activations import replicate


def _convolve(x, kernel, strides, padding, **how):
    convolve = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **how)
    depthwise = kernel.shape[-2] == 1 < how["feature_group_count"] == kernel.shape[-1]
    if depthwise or len(strides) == 3:
        convolve = _with_gradient_by_places(convolve, strides, padding, depthwise)
    return convolve(x, replicate(kernel))


def _with_gradient_by_places(convolve, strides, padding, depthwise: bool):
    """`convolve` of x (b y x d) or (b t y x d), with a gradient of its own on CPUs: that of a sum of products, one for
    each place in the kernel. XLA's own gradient of such convolutions is a loop over numbers there, 20 times as slow."""

    def by_places(x, kernel):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        padded, kernel = jnp.pad(x.astype(wide), ((0, 0), *padding, (0, 0))), kernel.astype(wide)
        ends = [side - size + 1 for side, size in zip(padded.shape[1:-1], kernel.shape[:-2], strict=True)]

        def product(place):
            read = padded[:, *(slice(i, i + end, stride) for i, end, stride in zip(place, ends, strides, strict=True))]
            return read * kernel[place] if depthwise else read @ kernel[place]

        return sum(map(product, np.ndindex(kernel.shape[:-2]))).astype(x.dtype)

    def gradient(function, x, kernel, cotangent):
        return jax.vjp(function, x, kernel)[1](cotangent)

    run = jax.custom_vjp(convolve)
    run.defvjp(
        lambda x, kernel: (convolve(x, kernel), (x, kernel)),
        lambda saved, cotangent: jax.lax.platform_dependent(
            *saved, cotangent, cpu=partial(gradient, by_places), default=partial(gradient, convolve)
        ),
    )
    return run


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

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        scale: float = 1.0,
        kernel_init=nnx.initializers.lecun_normal(),
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.convolution = Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            feature_group_count=groups,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
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

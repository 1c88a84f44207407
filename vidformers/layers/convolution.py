"""Convolutions with a fast gradient on CPUs, with scale and bias in place of batch normalisation; average pooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx

from vidformers.parallel.activations import replicate
from vidformers.parallel.target import TILE_LANES, target_platform

_FEW_CHANNELS = 32  # of pixels, for which `_columns_as_channels` pays


def _convolve(x, kernel, strides, padding, **options):
    """Returns `conv_general_dilated` with the kernel replicated on all devices, for `nnx.Conv`."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, window_strides=strides, padding=padding, **options)

    depthwise = kernel.shape[-2] == 1 < options["feature_group_count"] == kernel.shape[-1]
    kernel = replicate(kernel)
    if target_platform() == "tpu":
        if len(strides) == 3 and kernel.shape[0] > 1:
            return _convolve_frames(x, kernel, strides, padding, **options)
        x, kernel, strides, padding = _columns_as_channels(x, kernel, strides, padding)
    if depthwise or len(strides) == 3:
        return _with_fast_gradient(convolve, strides, padding, depthwise)(x, kernel)
    return convolve(x, kernel)


def _columns_as_channels(x, kernel, strides, padding):
    """Returns arguments of an equal convolution whose stride over the columns of x (... x c) is 1.

    The columns of a step lie side by side in the channels. With the few channels of pixels, TPUs then multiply more of
    them at once (benchmarks/NOTES.md). Returns the arguments unchanged where this is not so.
    """
    (columns, channels), stride, size = x.shape[-2:], strides[-1], kernel.shape[-3]
    if stride == 1 or columns % stride or stride * channels > _FEW_CHANNELS or kernel.shape[-2] != channels:
        return x, kernel, strides, padding
    before = -(-padding[-1][0] // stride)  # steps before the first column, and columns of zeros before the kernel
    zeros = before * stride - padding[-1][0]
    steps = -(-(zeros + size) // stride)
    x = x.reshape(*x.shape[:-2], columns // stride, stride * channels)
    widths = [(0, 0)] * (kernel.ndim - 3) + [(zeros, steps * stride - zeros - size), (0, 0), (0, 0)]
    kernel = jnp.pad(kernel, widths).reshape(*kernel.shape[:-3], steps, stride * channels, -1)
    outputs = (columns + sum(padding[-1]) - size) // stride + 1
    after = outputs - 1 + steps - before - columns // stride
    return x, kernel, (*strides[:-1], 1), [*padding[:-1], (before, after)]


def _convolve_frames(x, kernel, strides, padding, **options):
    """Returns a 3-D convolution of x (b t y x c) by a 2-D convolution of all frames of the batch.

    On TPUs, XLA's 3-D convolution of a few clips moves rows of pixels to the batch axis and back, and computes the
    gradient of the kernel with the clips in the lanes of a tile (benchmarks/NOTES.md).

    If the input channels of all frames under the kernel fill at most one tile, they lie side by side. Otherwise the
    outputs for all frames under the kernel lie side by side, and are added with their shifts in time.
    """
    assert options.pop("feature_group_count") == 1
    assert set(options.pop("lhs_dilation")) == set(options.pop("rhs_dilation")) == {1}
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    size, (b, t), (stride, *strides), ((before, after), *padding) = kernel.shape[0], x.shape[:2], strides, padding
    frames = (before + t + after - size) // stride + 1

    def convolve(x, kernel):
        x = x.reshape(-1, *x.shape[2:])
        x = jax.lax.conv_general_dilated(x, kernel, window_strides=strides, padding=padding, **options)
        return x.reshape(b, -1, *x.shape[1:])

    if size * x.shape[-1] <= TILE_LANES:
        x = jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * 3)
        under_kernel = [x[:, i : i + (frames - 1) * stride + 1 : stride] for i in range(size)]
        return convolve(jnp.concatenate(under_kernel, axis=-1), jnp.concatenate(list(kernel), axis=-2))

    def shifted(x, i):
        """Returns the frames (b t/s ...) of x that lie under frame i of the kernel, zeros beyond the clip."""
        end = (frames - 1) * stride + 1 + i - before - t
        config = [(0, 0, 0), (before - i, end, 0)] + [(0, 0, 0)] * 3
        return jax.lax.pad(x, jnp.zeros((), x.dtype), config)[:, ::stride]

    parts = jnp.split(convolve(x, jnp.concatenate(list(kernel), axis=-1)), size, axis=-1)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return sum(shifted(part.astype(wide), i) for i, part in enumerate(parts)).astype(x.dtype)


def _with_fast_gradient(convolve, strides, padding, depthwise: bool):
    """Returns `convolve` of x (b y x d) or (b t y x d) with a custom_vjp that is fast on CPUs.

    On CPUs, XLA's gradient of depthwise and 3-D convolutions is a scalar loop. Here it is the gradient of an equal sum
    of products, one per position of the kernel, which is 20 times as fast.
    """

    def sum_over_positions(x, kernel):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        padded, kernel = jnp.pad(x.astype(wide), ((0, 0), *padding, (0, 0))), kernel.astype(wide)
        ends = [side - size + 1 for side, size in zip(padded.shape[1:-1], kernel.shape[:-2], strict=True)]

        def product(position):
            inputs = padded[:, *(slice(i, i + end, step) for i, end, step in zip(position, ends, strides, strict=True))]
            return inputs * kernel[position] if depthwise else inputs @ kernel[position]

        return sum(map(product, np.ndindex(kernel.shape[:-2]))).astype(x.dtype)

    def gradient(function, x, kernel, cotangent):
        return jax.vjp(function, x, kernel)[1](cotangent)

    run = jax.custom_vjp(convolve)
    run.defvjp(
        lambda x, kernel: (convolve(x, kernel), (x, kernel)),
        lambda saved, cotangent: jax.lax.platform_dependent(
            *saved, cotangent, cpu=partial(gradient, sum_over_positions), default=partial(gradient, convolve)
        ),
    )
    return run


Conv = partial(nnx.Conv, conv_general_dilated=_convolve)
lecun_init = nnx.initializers.lecun_normal()


class Convolution(nnx.Module):
    """A k x k convolution of each frame without bias, then a scale and a bias per channel.

    Grids round up. The published ResNet and CvT have batch normalisation here, which depends on the other clips of the
    batch and on running statistics. Scale and bias compute batch normalisation in evaluation: a loaded model has
    scale = weight / sqrt(var + eps) and bias - mean * scale. Training updates scale and bias like all other parameters.
    Results do not depend on batch size or gradient accumulation.

    Args:
        inputs: channels c.
        outputs: channels d.
        size: k, odd.
        stride: s.
        groups: groups of channels that are convolved separately. With c groups the convolution is depthwise.
        scale: initial scale of each channel.
        kernel_init: initialiser of the kernel.
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
        kernel_init=lecun_init,
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
        self.size, self.stride, self.dtype = size, stride, dtype
        self.scale = nnx.Param(jnp.full(outputs, scale))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x, pool=None, only: int | None = None):
        """Returns maps (n y/s x/s d) of maps (n y x c), or (n y/s x/s t d) of (n y x t c).

        `pool` is max-pooling of the result. It commutes with a bias, which is added to the few elements that it leaves.

        TPUs store t and c in tiles. So that few channels fill them, p maps may lie side by side on the last axis:
        (n y/s x/s (p d)) of (n y x (p c)). `only` is the index of the one that is wanted: (n y/s x/s d).
        """
        side_by_side, convolution = x.ndim == 5, self.convolution
        kernel, scale, bias = convolution.kernel[...], self.scale[...], self.bias[...]
        # If the scale multiplied the output, training would also keep the unscaled output. On CPUs this is faster.
        scales_output = target_platform() == "cpu"
        if not scales_output:
            kernel = kernel.astype(jnp.promote_types(self.dtype, jnp.float32)) * scale
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        maps = x.shape[-1] // (kernel.shape[-2] * convolution.feature_group_count)
        if maps > 1:
            kernel = replicate(kernel)  # before it is repeated, which multiplies its bytes
            zeros = jnp.zeros_like(kernel)
            wanted = range(maps) if only is None else [only]
            rows = [[kernel if i == j else zeros for j in wanted] for i in range(maps)]
            kernel = jnp.concatenate([jnp.concatenate(row, axis=-1) for row in rows], axis=-2)
            scale, bias = jnp.tile(scale, len(wanted)), jnp.tile(bias, len(wanted))
        strides, padding, letters = [self.stride] * 2, [(self.size // 2,) * 2] * 2, "YX"
        if side_by_side:  # n is one more side of the map, and t the batch
            x, kernel = jnp.moveaxis(x, 3, 0), kernel[None]
            strides, padding, letters = [1, *strides], [(0, 0), *padding], "TYX"
        x = _convolve(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=convolution.feature_group_count,
        )
        x = jnp.moveaxis(x, 0, 3) if side_by_side else x
        x = x * scale.astype(self.dtype) if scales_output else x
        return (x if pool is None else pool(x)) + bias.astype(self.dtype)


def mean_pool(x, stride: int):
    """Returns averages (... y/s x/s d) of x (... y x d) over cells of stride x stride; grids round up.

    Cells that cross the edge repeat the last row or column. With a stride of 2 this is the mean of the tokens inside.
    """
    if target_platform() == "tpu":
        # One product. XLA would copy the cells, since it stores the axes x and d in tiles.
        *lead, _, _, d = x.shape
        rows, columns = (_mean_matrix(side, stride) for side in x.shape[-3:-1])
        weights = jnp.asarray(np.kron(rows, columns), x.dtype)
        cells = jnp.einsum("cn,...nd->...cd", weights, x.reshape(*lead, -1, d), precision=jax.lax.Precision.HIGHEST)
        return cells.reshape(*lead, len(rows), len(columns), d)
    # `nnx.avg_pool` is not used: on several devices XLA (jaxlib 0.10) computes a window over a side of 1 wrongly.
    below, right = (-side % stride for side in x.shape[-3:-1])
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, below), (0, right), (0, 0)], mode="edge")
    return reduce(padded, "... (y i) (x j) d -> ... y x d", "mean", i=stride, j=stride)


def _mean_matrix(side: int, stride: int) -> np.ndarray:
    """Returns the weights (cells, side) of the means of `stride` rows each. The last row is repeated to whole cells."""
    rows = np.minimum(np.arange(-(-side // stride) * stride), side - 1).reshape(-1, stride)
    return (rows[..., None] == np.arange(side)).mean(axis=1)

"""Propagates one scalar per token through a recorded attention, for every kind of attention sublayer.

The scalars take the place of the values V. The sublayer folds, shifts and pads them with its own methods. Sublayers
that pool keys and values by a convolution use mean pooling of the same stride instead, because convolution kernels act
on channels. Projections are skipped. Queries and keys are therefore meaningless, and the kernel ignores them and
applies recorded weights (`ReplayKernel`).

A new scheme of `SelfAttention` needs no change here. A new class of sublayer is registered with
`_propagate_attention`, and with `residual` if its residual path is not the identity.
"""

from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx

from vidformers.attention import kernels
from vidformers.attention.class_attention import ClassAttention, one_sequence
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.shifted import TokenShift
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.errors import ConfigError
from vidformers.layers.convolution import mean_pool
from vidformers.layers.mlp import Mlp
from vidformers.layers.tokens import Tokens, tokens_of_maps
from vidformers.models.stat import WideningMlp
from vidformers.models.vtn import PostNormMlp


class Propagated(NamedTuple):
    """The weighted sums of scalars that the heads of an attention sublayer compute.

    Attributes:
        patches: (b t n h), or (b n h) for all tokens of a `FrameSequence`. None if patches have no queries.
        class_tokens: (b c h). None if class tokens have no queries.
    """

    patches: jnp.ndarray | None
    class_tokens: jnp.ndarray | None


class RecordingKernel:
    """A kernel that records its attention weights.

    Args:
        kernel: the kernel to compute with. A linear kernel is computed in its quadratic form, which has weights.
        perturbations: arrays in the structure of `weights`. The weights A are multiplied by 1 + perturbation, so that
            the gradient of a logit with respect to the perturbation, at 0, is A * (d logit / dA).
    Attributes:
        weights: for each call, the weights (... h q k) of each item of `key_values`.
    """

    def __init__(self, kernel, perturbations=None):
        is_softmax = kernel in ("softmax", kernels.softmax)
        self.compute_weights = kernels.softmax_weights if is_softmax else kernels.quadratic_weights
        self.perturbations, self.weights = perturbations, []

    def __call__(self, q, key_values):
        weights = self.compute_weights(q, key_values)
        if self.perturbations is not None:
            perturbations = self.perturbations[len(self.weights)]
            weights = [weight * (1 + change) for weight, change in zip(weights, perturbations, strict=True)]
        self.weights.append(weights)
        return kernels.weighted_values(weights, q, key_values)


class ReplayKernel:
    """A kernel that applies the weights of a `RecordingKernel`, call by call, and ignores queries and keys."""

    def __init__(self, weights):
        self.weights, self.calls = weights, 0

    def __call__(self, q, key_values):
        self.calls += 1
        return kernels.weighted_values(self.weights[self.calls - 1], q, key_values)


def propagate(sublayer, scalars, weights) -> Propagated | None:
    """Propagates scalars through an attention sublayer, without its residual path.

    A dictionary contributes 0, because its entries do not depend on the clip.

    Args:
        sublayer: a sublayer of a block. It is not modified.
        scalars: `Tokens` with patches (b t n 1) and class tokens (b c 1), or a `FrameSequence` of (b n 1).
        weights: the weights that a `RecordingKernel` recorded in this sublayer.
    Returns:
        The weighted sums by head, or None for a sublayer without attention.
    Raises:
        ConfigError: the class of the sublayer is not registered.
    """
    if hasattr(sublayer, "kernel"):
        sublayer = nnx.merge(*nnx.split(sublayer))
        sublayer.kernel = ReplayKernel(weights)
    if getattr(sublayer, "dictionary", None) is not None:
        # (entries, heads): a scalar takes the place of the values of a head, so the width of a head is 1.
        sublayer.dictionary.values = nnx.Param(jnp.zeros((sublayer.dictionary.keys.shape[0], sublayer.heads)))
        sublayer.dictionary.mlp = nnx.data(None)
    return _propagate_attention(sublayer, scalars)


@singledispatch
def residual(sublayer, scalars):
    """Returns the scalars after the residual path of a sublayer."""
    return scalars


@residual.register
def _(sublayer: ShrinkingAttention, scalars: Tokens):
    return scalars if sublayer.pool_q is None else tokens_of_maps(mean_pool(scalars.maps, 2), scalars.class_tokens)


@residual.register
def _(sublayer: TokenShift, scalars: Tokens):
    # A share of the channels is shifted. The mean over all channels weighs each frame by its share of the channels.
    channels = jnp.broadcast_to(scalars.class_tokens, (*scalars.class_tokens.shape[:-1], sublayer.width))
    shifted = sublayer(scalars.replace(class_tokens=channels))
    return scalars.replace(class_tokens=shifted.class_tokens.mean(-1, keepdims=True))


@singledispatch
def _propagate_attention(sublayer, scalars) -> Propagated | None:
    raise ConfigError(
        f"--mode=explain does not support the sublayer {type(sublayer).__name__}. Register it with "
        f"`_propagate_attention` in {__name__}."
    )


@_propagate_attention.register(Mlp)
@_propagate_attention.register(PostNormMlp)
@_propagate_attention.register(TokenShift)
@_propagate_attention.register(WideningMlp)
def _(sublayer, scalars):
    return None


@_propagate_attention.register
def _(sublayer: SelfAttention, scalars: Tokens):
    groups = _repeat_per_head(sublayer, sublayer.gather(scalars))
    # Where class tokens have no queries, the recorded weights have no rows for them, so their queries are ignored.
    out = sublayer.attend(groups, groups, groups, scalars.grid)
    return Propagated(*sublayer.scatter(out[..., 0], scalars))


@_propagate_attention.register
def _(sublayer: ClassAttention, scalars: Tokens):
    patches, mask = one_sequence(scalars.patches)
    q, kv = (_repeat_per_head(sublayer, x) for x in (scalars.class_tokens, patches))
    return Propagated(None, sublayer.attend(q, kv, kv, mask)[..., 0])


@_propagate_attention.register
def _(sublayer: ShrinkingAttention, scalars: Tokens):
    scalars = jax.tree.map(lambda x: repeat(x, "... 1 -> ... h", h=sublayer.heads), scalars)
    # The levels take keys and values, stacked.
    patches, class_tokens = (jnp.stack([x] * 2) for x in (scalars.maps, scalars.class_tokens))
    levels = sublayer.levels(patches, class_tokens, lambda kv: mean_pool(kv, sublayer.kv_stride))
    out = sublayer.attend(residual(sublayer, scalars).maps, scalars.class_tokens, levels)[..., 0]
    return Propagated(out[:, :, 1:], out[:, :, 0])


@_propagate_attention.register
def _(sublayer: ConvolutionalAttention, scalars: Tokens):
    pooled = mean_pool(scalars.maps, sublayer.stride)
    groups = (sublayer.gather(maps, scalars.class_tokens) for maps in (scalars.maps, pooled))
    q, kv = (_repeat_per_head(sublayer, x) for x in groups)
    return Propagated(*sublayer.scatter(sublayer.attend(q, kv, kv, scalars.grid)[..., 0], scalars.grid))


@_propagate_attention.register
def _(sublayer: ShiftedWindowAttention, scalars: Tokens):
    windows = _repeat_per_head(sublayer, sublayer.fold(scalars.maps, scalars.grid))
    out = sublayer.attend(windows, windows, windows, scalars.grid)[..., 0]
    return Propagated(sublayer.unfold(out, scalars.grid).reshape(*scalars.patches.shape[:3], -1), None)


@_propagate_attention.register
def _(sublayer: LongformerAttention, scalars: FrameSequence):
    qkv = [_repeat_per_head(sublayer, scalars.tokens)] * 3
    kernels = [sublayer.kernel] * 2  # of the frames and of the class token: one kernel replays the calls of both
    return Propagated(sublayer.attend(qkv, qkv, scalars.valid, kernels)[..., 0], None)


def _repeat_per_head(sublayer, x):
    """Returns (... h 1) from (... 1): the same scalars for each head."""
    return repeat(x, "... 1 -> ... h 1", h=sublayer.heads)

"""What of one number a token reaches each query, through every kind of attention.

The number takes the place of the values, and goes the way of the values of its scheme: folded, shifted or padded by
what the sublayer itself does, and averaged over cells where it pools by a convolution, whose weights say nothing of
numbers. Nothing else of the sublayer takes part, so that a kernel is needed which knows its weights (`Known`). A new
scheme for `SelfAttention` needs nothing here.
"""

from functools import singledispatch
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from vidformers.attention import kernels
from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.core import SelfAttention, merge_copies
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.shifted import TokenShift
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.layers.convolution import mean_pool
from vidformers.layers.tokens import Tokens


class Propagated(NamedTuple):
    """What every head of a sublayer reads: patches (b t y x h), class tokens (b c h), None where they do not query; of
    a `Series`, both together as `patches` (b n h)."""

    patches: jnp.ndarray | None
    class_tokens: jnp.ndarray | None


class RecordingKernel:
    """A kernel that keeps its weights, (... h q k) of each source, in `seen`, a list for each time it is called.

    Args:
        kernel: the one that it stands for. Of the linear ones, the weights are those of their quadratic form.
        nudges: in the structure of `seen`, numbers that 1 is added to and the weights are multiplied by.
    """

    def __init__(self, kernel, nudges=None):
        self.weigh = kernels.softmax_weights if kernel in ("softmax", kernels.softmax) else kernels.quadratic_weights
        self.nudges, self.seen = nudges, []

    def __call__(self, q, sources):
        weights = self.weigh(q, sources)
        if self.nudges is not None:
            weights = [each * (1 + nudge) for each, nudge in zip(weights, self.nudges[len(self.seen)], strict=True)]
        self.seen.append(weights)
        return kernels.weighted_values(weights, q, sources)


class ReplayKernel:
    """A kernel of the weights that a `Watched` one has seen, whatever the queries and keys."""

    def __init__(self, seen):
        self.seen, self.calls = seen, 0

    def __call__(self, q, sources):
        self.calls += 1
        return kernels.weighted_values(self.seen[self.calls - 1], q, sources)


def propagate(sublayer, field, seen) -> Propagated | None:
    """What a sublayer, whose weights are `seen`, reads of a field: patches (b t y x 1) and class tokens (b c 1), or a
    `Series` of (b n 1). None of a sublayer that is no attention. A dictionary holds nothing of a clip: nought."""
    if hasattr(sublayer, "kernel"):
        sublayer = nnx.merge(*nnx.split(sublayer))
        sublayer.kernel = ReplayKernel(seen)
    if getattr(sublayer, "dictionary", None) is not None:
        sublayer.dictionary.values = nnx.Param(jnp.zeros((sublayer.dictionary.keys.shape[0], sublayer.heads)))
    return _flow(sublayer, field)


def residual(sublayer, field):
    """The field as it passes by a sublayer, on its residual path."""
    if isinstance(sublayer, ShrinkingAttention) and sublayer.pool_q is not None:
        return field._replace(patches=mean_pool(field.patches, 2))
    if isinstance(sublayer, TokenShift):
        channels = jnp.broadcast_to(field.class_tokens, (*field.class_tokens.shape[:-1], sublayer.width))
        return field._replace(
            class_tokens=sublayer(field._replace(class_tokens=channels)).class_tokens.mean(-1, keepdims=True)
        )
    return field


@singledispatch
def _flow(sublayer, field):
    return None


@_flow.register
def _(sublayer: SelfAttention, field: Tokens):
    grid, classes = field.patches.shape[1:4], None
    patches, count = _heads(sublayer, field.patches), field.class_tokens.shape[1]
    if sublayer.class_keys and count:
        copies = jnp.repeat(field.class_tokens, len(sublayer.group_mask(grid)) // count, axis=1)
        classes = [_heads(sublayer, copies)] * 3
    patches, classes = sublayer.attend([patches] * 3, classes, grid)
    return Propagated(patches[..., 0], None if classes is None else merge_copies(classes[..., 0], field.class_tokens))


@_flow.register
def _(sublayer: ClassAttention, field: Tokens):
    patches = rearrange(_heads(sublayer, field.patches), "b t y x h 1 -> b (t y x) h 1")
    return Propagated(None, sublayer.attend(_heads(sublayer, field.class_tokens), patches, patches)[..., 0])


@_flow.register
def _(sublayer: ShrinkingAttention, field: Tokens):
    patches, classes = (repeat(x, "... 1 -> ... h", h=sublayer.heads) for x in field)
    query = residual(sublayer, Tokens(patches, classes)).patches
    levels = sublayer.levels(
        jnp.stack([patches] * 2), jnp.stack([classes] * 2), lambda pair: mean_pool(pair, sublayer.kv_stride)
    )
    out = sublayer.attend(query, classes, levels)[..., 0]
    return Propagated(out[:, :, 1:].reshape(query.shape), out[:, :, 0])


@_flow.register
def _(sublayer: ConvolutionalAttention, field: Tokens):
    query, key, classes = (
        _heads(sublayer, x) for x in (field.patches, mean_pool(field.patches, sublayer.stride), field.class_tokens)
    )
    patches, classes = sublayer.attend([query, key, key], [classes] * 3)
    return Propagated(patches[..., 0], classes[..., 0] if classes.shape[1] else None)


@_flow.register
def _(sublayer: ShiftedWindowAttention, field: Tokens):
    patches = _heads(sublayer, sublayer.padded(field.patches))
    return Propagated(sublayer.attend(patches, patches, patches, field.patches.shape[1:4])[..., 0], None)


@_flow.register
def _(sublayer: LongformerAttention, field: FrameSequence):
    tokens = [_heads(sublayer, field.tokens)] * 3
    return Propagated(sublayer.attend(tokens, tokens, field.valid, [sublayer.kernel] * 2)[..., 0], None)


def _heads(sublayer, x):
    """(... 1) -> (... h 1), the same for each head."""
    return repeat(x, "... 1 -> ... h 1", h=sublayer.heads)

"""Longformer attention over a series of frames: a sliding window, and a class token that all see and that sees all."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import attend, check_heads
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.kernels import softmax, softmax_with_dropout
from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import Noise, dropout


class FrameSequence(NamedTuple):
    """A class token and, in order of time, frames, one token each: tokens (b n d) with the class token first.

    `valid` (b n) is False where a frame is padding, which nobody sees; the class token is always valid.
    """

    tokens: jax.Array
    valid: jax.Array


class LongformerAttention(nnx.Module):
    """LN(tokens + W_O attend(tokens)), post-norm (Longformer sec. 3.1; the temporal encoder of VTN sec. 3.2).

    A frame sees the frames at most w/2 before or after it in the series, and the class token. The class token sees all
    frames and itself, by projections of its own: q_g of itself, k_g and v_g of all. Time and memory are linear in the
    number of frames. `dropout` acts on the attention weights and on the branch.

    Args:
        width, heads: d and h; h divides d.
        window: w, even; both sides together, as Hugging Face counts.
        tie_global: the class token reads by the projections of the frames.
        dictionary: external tokens that the frames and the class token read too, or None.
        masked: run full attention under the visibility matrix, the slow definition, instead of by chunks.
    Raises:
        ConfigError: the heads do not divide the width, or a window that is odd or below 4.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        *,
        tie_global: bool = False,
        dictionary: Dictionary | None = None,
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        require(
            isinstance(window, int) and window >= 4 and window % 2 == 0,
            f"model.window={window} must be an even number of frames, at least 4.",
        )
        self.heads, self.reach, self.dropout, self.masked = heads, window // 2, dropout, masked
        self.tie_global, self.kernel, self.dictionary = tie_global, softmax, nnx.data(dictionary)

        def linear(inputs, outputs):
            return Linear(inputs, outputs, kernel_init=square_init, dtype=dtype, rngs=rngs)

        self.qkv = linear(width, 3 * width)
        if not tie_global:
            self.q_global, self.kv_global = linear(width, width), linear(width, 2 * width)
        self.out = linear(head_multiplier(dictionary) * width, width)
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

    def __call__(self, series: FrameSequence, noise: Noise | None = None) -> FrameSequence:
        noise, *own = (None, None, None) if noise is None else noise.split(3)
        branch = dropout(self.branch(series, *own), self.dropout, noise)
        return series._replace(tokens=self.norm(series.tokens + branch))

    def branch(self, series: FrameSequence, of_frames: Noise | None = None, of_token: Noise | None = None):
        """The update (b n d), without the residual and its norm; the noises thin out attention weights."""
        kernels = [
            self.kernel
            if noise is None
            else partial(softmax_with_dropout, drop=lambda weights, noise=noise: dropout(weights, self.dropout, noise))
            for noise in (of_frames, of_token)
        ]
        tokens, valid = series
        frames = token = self._heads(self.qkv(tokens), 3)
        if not self.tie_global:
            token = (*self._heads(self.q_global(tokens[:, :1]), 1), *self._heads(self.kv_global(tokens), 2))
        return self.out(rearrange(self.attend(frames, token, valid, kernels), "b n h e -> b n (h e)"))

    def attend(self, frames, token, valid, kernels):
        """q, k, v (b n h e) each, for the frames and for the class token -> what class token and frames read."""
        attends = [partial(attend, dictionary=self.dictionary, kernel=kernel) for kernel in kernels]
        (q, k, v), read = frames, self._masked if self.masked else self._gathered
        (own, *others), frames = token, read(attends[0], q[:, 1:], k, v, valid)
        return jnp.concatenate([attends[1](own[:, :1], *others, valid[:, None, None]), frames], axis=1)

    def _heads(self, x, parts: int):
        return rearrange(x, "b n (s h e) -> s b n h e", s=parts, h=self.heads)

    def _gathered(self, attend, q, k, v, valid):
        """The frames' q (b t h e); k, v (b 1+t h e) and valid (b 1+t) of class token and frames -> (b t h e).

        A chunk of w/2 frames reads itself, the chunk before and the chunk after it, which hold all its windows.
        """
        frames = q.shape[1]
        size = min(self.reach, frames)

        def keys(x):
            chunks = _with_neighbours(_fold(x[:, 1:], size))
            token = jnp.broadcast_to(x[:, None, :1], (*chunks.shape[:2], 1, *chunks.shape[3:]))
            return jnp.concatenate([token, chunks], axis=2)

        near = np.abs(np.arange(size)[:, None] + size - np.arange(3 * size)) <= self.reach
        mask = np.pad(near, ((0, 0), (1, 0)), constant_values=True) & keys(valid)[:, :, None]
        out = attend(_fold(q, size), keys(k), keys(v), mask[:, :, None])
        return rearrange(out, "b g n h e -> b (g n) h e")[:, :frames]

    def _masked(self, attend, q, k, v, valid):
        place = np.arange(k.shape[1])
        near = (np.abs(place[1:, None] - place) <= self.reach) | (place == 0)
        return attend(q, k, v, (near & valid[:, None])[:, None])


def _fold(x, size: int):
    """b t ... -> b g n ..., chunks of n = `size` frames, the last one padded with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return rearrange(x, "b (g n) ... -> b g n ...", n=size)


def _with_neighbours(chunks):
    """b g n ... -> b g 3n ...: the chunk before, the chunk itself, the chunk after; zeros beyond the ends."""
    padded = jnp.pad(chunks, [(0, 0), (1, 1)] + [(0, 0)] * (chunks.ndim - 2))
    return jnp.concatenate([padded[:, :-2], chunks, padded[:, 2:]], axis=2)

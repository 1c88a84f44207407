"""Longformer attention over a series of frames: a sliding window, and a class token with global attention."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import check_heads, compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.kernels import softmax, softmax_with_dropout
from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import LayerRng, dropout


class FrameSequence(NamedTuple):
    """A class token and one token for each frame, in order of time.

    Attributes:
        tokens: (b n d), the class token first.
        valid: (b n), False for a frame that is padding, which no query sees. The class token is always valid.
    """

    tokens: jax.Array
    valid: jax.Array


class LongformerAttention(nnx.Module):
    """LN(tokens + W_O attend(tokens)), post-norm (Longformer sec. 3.1; the temporal encoder of VTN sec. 3.2).

    A frame sees the frames at most w/2 before or after it in the series, and the class token. The class token sees all
    frames and itself, by separate projections: q_g of itself, and k_g and v_g of all tokens. Time and memory are linear
    in the number of frames.

    Args:
        width: d.
        heads: h, which divides d.
        window: w, even, counted over both sides as Hugging Face does.
        tie_global: whether the class token uses the projections of the frames.
        dictionary: external tokens that the frames and the class token read too, or None.
        dropout: rate of dropout on the attention weights and on the branch.
        masked: runs full attention under the visibility matrix, the slow definition, for tests.

    Raises:
        ConfigError: the heads do not divide the width, or the window is odd or below 4.
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
            f"model.window={window} is not applicable. Set an even number of frames, at least 4.",
        )
        self.heads, self.half_window, self.dropout, self.masked = heads, window // 2, dropout, masked
        self.tie_global, self.kernel, self.dictionary = tie_global, softmax, nnx.data(dictionary)

        def linear(inputs, outputs):
            return Linear(inputs, outputs, kernel_init=square_init, dtype=dtype, rngs=rngs)

        self.qkv = linear(width, 3 * width)
        if not tie_global:
            self.q_global, self.kv_global = linear(width, width), linear(width, 2 * width)
        self.out = linear(head_multiplier(dictionary) * width, width)
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

    def __call__(self, series: FrameSequence, rng: LayerRng | None = None) -> FrameSequence:
        split_rngs: Sequence[LayerRng | None] = [None] * 3 if rng is None else rng.split(3)
        branch = dropout(self.branch(series, *split_rngs[1:]), self.dropout, split_rngs[0])
        return series._replace(tokens=self.norm(series.tokens + branch))

    def branch(
        self, series: FrameSequence, frame_rng: LayerRng | None = None, class_rng: LayerRng | None = None
    ) -> jax.Array:
        """Returns the update (b n d), without the residual and its norm.

        Args:
            series: class token and frames.
            frame_rng: draws dropout of the attention weights of frames.
            class_rng: draws dropout of the attention weights of the class token.
        """
        kernels = [
            self.kernel
            if rng is None
            else partial(softmax_with_dropout, drop=lambda weights, rng=rng: dropout(weights, self.dropout, rng))
            for rng in (frame_rng, class_rng)
        ]
        tokens, valid = series
        frames = class_token = self._heads(self.qkv(tokens), 3)
        if not self.tie_global:
            class_token = (*self._heads(self.q_global(tokens[:, :1]), 1), *self._heads(self.kv_global(tokens), 2))
        return self.out(rearrange(self.attend(frames, class_token, valid, kernels), "b n h e -> b n (h e)"))

    def attend(self, frames, class_token, valid, kernels):
        """Returns the outputs of the heads (b n h e), the class token first.

        Args:
            frames: q, k, v (b n h e) for the queries of frames.
            class_token: q (b 1 h e) or (b n h e), and k, v (b n h e), for the query of the class token.
            valid: (b n).
            kernels: the kernels of the two attentions.
        """
        attend_frames, attend_class = (
            partial(compute_attention, dictionary=self.dictionary, kernel=kernel) for kernel in kernels
        )
        q, k, v = frames
        frames_out = (self._masked if self.masked else self._gathered)(attend_frames, q[:, 1:], k, v, valid)
        q, k, v = class_token
        return jnp.concatenate([attend_class(q[:, :1], k, v, valid[:, None, None]), frames_out], axis=1)

    def _heads(self, x, count: int):
        """Returns `count` projections side by side (b n s*d) as (s b n h e)."""
        return rearrange(x, "b n (s h e) -> s b n h e", s=count, h=self.heads)

    def _gathered(self, attend_frames, q, k, v, valid):
        """Returns the outputs of the heads for frames (b t h e), from q (b t h e), k, v (b 1+t h e) and valid (b 1+t).

        Each chunk of w/2 frames reads itself and the chunks before and after it, which hold the windows of its frames.
        """
        frames = q.shape[1]
        size = min(self.half_window, frames)

        def keys(x):
            chunks = _with_neighbours(_fold(x[:, 1:], size))
            class_token = jnp.broadcast_to(x[:, None, :1], (*chunks.shape[:2], 1, *chunks.shape[3:]))
            return jnp.concatenate([class_token, chunks], axis=2)

        near = np.abs(np.arange(size)[:, None] + size - np.arange(3 * size)) <= self.half_window
        mask = np.pad(near, ((0, 0), (1, 0)), constant_values=True) & keys(valid)[:, :, None]
        out = attend_frames(_fold(q, size), keys(k), keys(v), mask[:, :, None])
        return rearrange(out, "b g n h e -> b (g n) h e")[:, :frames]

    def _masked(self, attend_frames, q, k, v, valid):
        place = np.arange(k.shape[1])
        near = (np.abs(place[1:, None] - place) <= self.half_window) | (place == 0)
        return attend_frames(q, k, v, (near & valid[:, None])[:, None])


def _fold(x, size: int):
    """Returns chunks (b g n ...) of n = `size` frames, of frames (b t ...). The last chunk is padded with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return rearrange(x, "b (g n) ... -> b g n ...", n=size)


def _with_neighbours(chunks):
    """Returns (b g 3n ...): the chunk before, the chunk itself and the chunk after; zeros beyond the ends."""
    padded = jnp.pad(chunks, [(0, 0), (1, 1)] + [(0, 0)] * (chunks.ndim - 2))
    return jnp.concatenate([padded[:, :-2], chunks, padded[:, 2:]], axis=2)

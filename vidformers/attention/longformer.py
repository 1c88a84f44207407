"""Longformer attention over a series of frames: a sliding window, and a class token with global attention."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend
from vidformers.attention.scheme import with_neighbours
from vidformers.errors import require
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, dropout, split_rng


class FrameSequence(NamedTuple):
    """A class token and one token for each frame, in order of time.

    Attributes:
        tokens: (b n d), the class token first.
        valid: (b n), False for a frame that is padding, which is hidden as a key. The class token is always valid.
    """

    tokens: jax.Array
    valid: jax.Array


class LongformerAttention(nnx.Module):
    """LN(tokens + W_O attend(tokens)), post-norm (Longformer sec. 3.1; the temporal encoder of VTN sec. 3.2).

    A frame attends to the frames at most w/2 before or after it, and to the class token. The class token attends to all
    frames and to itself, with separate projections: q_g of itself, and k_g and v_g of all tokens. Time and memory are
    linear in the number of frames.

    Args:
        width: d.
        heads: h, which divides d.
        window: w, even, the sum over both sides, as in Hugging Face.
        tie_global: whether the class token uses the projections of the frames.
        dictionary: learned keys and values that every query attends to as well, or None.
        backend: the implementation of softmax in the gathered form, one of `fused.BACKENDS`. With dropout in training
            it is einsum.
        dropout: rate of dropout on the attention weights and on the branch.
        masked: runs the masked form, attention over all tokens under a mask. This slow form is the reference in tests.

    Raises:
        ConfigError: the heads do not divide the width, the window is odd or below 4, or the backend is unknown or not
            applicable.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        *,
        tie_global: bool = False,
        dictionary: Dictionary | None = None,
        backend: str = "auto",
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        check_backend(backend, "softmax", dtype, width // heads)
        require(
            isinstance(window, int) and window >= 4 and window % 2 == 0,
            f"model.window={window} is not applicable. Set an even number of frames, at least 4.",
        )
        self.heads, self.half_window, self.dropout, self.masked = heads, window // 2, dropout, masked
        self.tie_global, self.dictionary = tie_global, nnx.data(dictionary)
        self.kernel, self.backend = "softmax", backend

        def linear(inputs, outputs):
            return Linear(inputs, outputs, kernel_init=square_init, dtype=dtype, rngs=rngs)

        self.qkv = linear(width, 3 * width)
        if not tie_global:
            self.q_global, self.kv_global = linear(width, width), linear(width, 2 * width)
        self.out = linear(head_multiplier(dictionary) * width, width)
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

    def __call__(self, series: FrameSequence, rng: LayerRng | None = None) -> FrameSequence:
        branch_rng, frame_rng, class_rng = split_rng(rng, 3)
        branch = dropout(self.branch(series, frame_rng, class_rng), self.dropout, branch_rng)
        return series._replace(tokens=self.norm(series.tokens + branch))

    def branch(
        self, series: FrameSequence, frame_rng: LayerRng | None = None, class_rng: LayerRng | None = None
    ) -> jax.Array:
        """Returns the update (b n d), without the residual and its norm.

        Args:
            series: class token and frames.
            frame_rng: for dropout of the attention weights of frames.
            class_rng: for dropout of the attention weights of the class token.
        """
        kernels = [self._kernel(rng) for rng in (frame_rng, class_rng)]
        tokens, valid = series
        frames_qkv = class_qkv = self.qkv.to_heads(tokens, 3, self.heads)
        if not self.tie_global:
            class_q = self.q_global.to_heads(tokens[:, :1], 1, self.heads)
            class_qkv = class_q + self.kv_global.to_heads(tokens, 2, self.heads)
        return self.out.from_heads(self.attend(frames_qkv, class_qkv, valid, kernels))

    def _kernel(self, rng: LayerRng | None):
        drop = None if rng is None or not self.dropout else lambda weights: dropout(weights, self.dropout, rng)
        return attention_kernel(self.kernel, self.backend, masked=self.masked, dropout=drop)

    def attend(self, frames_qkv, class_qkv, valid, kernels):
        """Returns the outputs of the heads (b n h e), the class token first.

        Args:
            frames_qkv: q, k, v of all tokens (b n h e), for the attention of frames.
            class_qkv: q (b 1 h e) or (b n h e), and k, v of all tokens (b n h e), for the attention of the class token.
            valid: (b n).
            kernels: the kernel for frames and the kernel for the class token.
        """
        attend_frames, attend_class = (
            partial(compute_attention, dictionary=self.dictionary, kernel=kernel) for kernel in kernels
        )
        q, k, v = frames_qkv
        frames_out = (self._masked if self.masked else self._gathered)(attend_frames, q[:, 1:], k, v, valid)
        q, k, v = class_qkv
        return jnp.concatenate([attend_class(q[:, :1], k, v, valid[:, None, None]), frames_out], axis=1)

    def _gathered(self, attend_frames, q, k, v, valid):
        """Returns the outputs of the heads for frames (b t h e), from q (b t h e), k, v (b 1+t h e) and valid (b 1+t).

        Frames are cut into chunks of w/2. The keys of a chunk are the class token, the chunk before, the chunk itself
        and the chunk after. These contain the windows of all frames of the chunk; a mask hides the rest.
        """
        frames = q.shape[1]
        size = min(self.half_window, frames)

        def keys(x):
            chunks = with_neighbours(_fold(x[:, 1:], size), (-1, 0, 1))
            class_token = jnp.broadcast_to(x[:, None, :1], (*chunks.shape[:2], 1, *chunks.shape[3:]))
            return jnp.concatenate([class_token, chunks], axis=2)

        in_window = np.abs(np.arange(size)[:, None] + size - np.arange(3 * size)) <= self.half_window
        mask = np.pad(in_window, ((0, 0), (1, 0)), constant_values=True) & keys(valid)[:, :, None]
        out = attend_frames(_fold(q, size), keys(k), keys(v), mask[:, :, None])
        return rearrange(out, "b g n h e -> b (g n) h e")[:, :frames]

    def _masked(self, attend_frames, q, k, v, valid):
        index = np.arange(k.shape[1])  # 0 is the class token
        visible = (np.abs(index[1:, None] - index) <= self.half_window) | (index == 0)
        return attend_frames(q, k, v, (visible & valid[:, None])[:, None])


def _fold(x, size: int):
    """Returns chunks (b g n ...) of n = `size` frames, of frames (b t ...). The last chunk is padded with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return rearrange(x, "b (g n) ... -> b g n ...", n=size)

"""CvT's attention: convolutions of each frame compute the queries, and the keys and values at half the resolution."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend
from vidformers.attention.scheme import Position, Scheme
from vidformers.errors import require
from vidformers.layers.convolution import Convolution
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch


class ConvolutionalAttention(nnx.Module):
    """tokens + W_O attend(W_q conv LN tokens, W_k conv_s LN tokens, W_v conv_s LN tokens) (CvT eq. 2, 3).

    Class tokens are optional, one per group of the scheme. They are queries and keys, and are not convolved.

    Args:
        scheme: `Frame()` or `Joint()`: a query attends to the keys of its frame or of the clip, on their coarser grid.
        width: d.
        heads: h, which divides d.
        stride: s of keys and values.
        scale: the factor of the scores: 'width' is 1/sqrt(d), as in the public CvT, 'heads' is 1/sqrt(e).
        dictionary: learned keys and values that every query attends to as well, or None.
        kernel: 'softmax' or 'relu'. The scale has no effect on 'relu'.
        backend: the implementation of softmax in the gathered form, one of `fused.BACKENDS`.
        dropout: rate of dropout on the branch.
        masked: runs the masked form, attention over all tokens under a mask. This slow form is the reference in tests.

    Raises:
        ConfigError: the heads do not divide the width, or the scale, the kernel or the backend is unknown or not
            applicable.
    """

    def __init__(
        self,
        scheme: Scheme,
        width: int,
        heads: int,
        *,
        stride: int = 2,
        scale: str = "width",
        dictionary: Dictionary | None = None,
        kernel: str = "softmax",
        backend: str = "auto",
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        check_backend(backend, kernel, dtype, width // heads)
        require(scale in ("width", "heads"), f"model.scale={scale!r} is unknown. Use width or heads.")
        require(
            kernel in ("softmax", "relu"),
            f"model.kernel={kernel!r} is not applicable, because convolved keys have no order. Use softmax or relu.",
        )
        self.scheme, self.heads, self.stride, self.dropout, self.masked = scheme, heads, stride, dropout, masked
        self.scale, self.kernel, self.backend = heads**-0.5 if scale == "width" else 1.0, kernel, backend
        self.dictionary = nnx.data(dictionary)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.near = nnx.List(
            Convolution(width, width, 3, stride=s, groups=width, dtype=dtype, rngs=rngs) for s in (1, stride, stride)
        )
        self.qkv = nnx.List(Linear(width, width, kernel_init=square_init, dtype=dtype, rngs=rngs) for _ in "qkv")
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t n d), and class tokens (b c d) or None."""
        patches, class_tokens = self.norm(tokens.maps), self.norm(tokens.class_tokens)
        patches_qkv = [
            self._split_heads(project(near(patches))) for near, project in zip(self.near, self.qkv, strict=True)
        ]
        class_qkv = [self._split_heads(project(class_tokens)) for project in self.qkv]
        patches_qkv[0], class_qkv[0] = patches_qkv[0] * self.scale, class_qkv[0] * self.scale
        patches, class_tokens = (
            self.out(rearrange(x, "... h e -> ... (h e)")) for x in self.attend(patches_qkv, class_qkv)
        )
        return patches.reshape(tokens.patches.shape), class_tokens if class_tokens.shape[1] else None

    def attend(self, patches_qkv, class_qkv):
        """Returns the outputs of the heads for patches (b t y x h e) and class tokens (b c h e).

        Args:
            patches_qkv: [q, k, v], each (b t y x h e). Keys and values have a coarser grid than queries.
            class_qkv: [q, k, v], each (b c h e).
        """
        return (self._masked if self.masked else self._gathered)(patches_qkv, class_qkv)

    def _split_heads(self, x):
        return rearrange(x, "... (h e) -> ... h e", h=self.heads)

    def _gathered(self, patches_qkv, class_qkv):
        grid, count = patches_qkv[0].shape[1:4], class_qkv[0].shape[1]
        q, k, v = (self._fold(x) for x in patches_qkv)
        if count:
            groups = q.shape[1]
            require(
                count == groups,
                f"{count} class tokens cannot be distributed to {groups} groups. Use one class token per group.",
            )
            q, k, v = (
                jnp.concatenate([token[:, :, None], x], axis=2) for token, x in zip(class_qkv, (q, k, v), strict=True)
            )
        out = compute_attention(q, k, v, dictionary=self.dictionary, kernel=attention_kernel(self.kernel, self.backend))
        if not count:
            return self._unfold(out, grid), out[:, :0, 0]
        return self._unfold(out[:, :, 1:], grid), out[:, :, 0]

    def _fold(self, x):
        """Returns groups (b g m h e) of x (b t y x h e)."""
        b, t, rows, columns, *heads = x.shape
        groups = self.scheme.fold(x.reshape(b, t, rows * columns, -1), (t, rows, columns))
        return groups.reshape(*groups.shape[:3], *heads)

    def _unfold(self, groups, grid):
        """Returns x (b t y x h e) of groups (b g m h e)."""
        patches = self.scheme.unfold(groups.reshape(*groups.shape[:3], -1), grid)
        return patches.reshape(patches.shape[0], *grid, *groups.shape[3:])

    def _masked(self, patches_qkv, class_qkv):
        grid, count = patches_qkv[0].shape[1:4], class_qkv[0].shape[1]
        q, k, v = (
            jnp.concatenate([token, rearrange(x, "b t y x h e -> b (t y x) h e")], axis=1)
            for token, x in zip(class_qkv, patches_qkv, strict=True)
        )
        # The frame index stands for t, y and x alike, since `Frame` compares only t and `Joint` compares nothing. Class
        # token i has the position of frame i.
        query, key = (np.concatenate([np.arange(count), np.indices(x.shape[1:4])[0].ravel()]) for x in patches_qkv[:2])
        mask = self.scheme.visible(
            Position(*[jnp.asarray(query)[:, None]] * 3), Position(*[jnp.asarray(key)[None]] * 3)
        )
        kernel = attention_kernel(self.kernel, self.backend, masked=True)
        out = compute_attention(q, k, v, mask, dictionary=self.dictionary, kernel=kernel)
        return rearrange(out[:, count:], "b (t y x) h e -> b t y x h e", t=grid[0], y=grid[1]), out[:, :count]

"""CvT's attention: queries, keys and values are convolutions of a frame, keys and values at half its resolution."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import attend, check_heads
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.kernels import get_kernel
from vidformers.attention.scheme import Position, Scheme
from vidformers.errors import require
from vidformers.layers.convolution import Convolution
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import Noise, Tokens, add_branch


class ConvolutionalAttention(nnx.Module):
    """tokens + W_O attend(W_q conv LN tokens, W_k conv_s LN tokens, W_v conv_s LN tokens) (CvT eq. 2, 3).

    Class tokens, where there are any, one a group of the scheme, are not convolved; they read and are read.

    Args:
        scheme: `Frame()` or `Joint()`: which keys, of their coarser grid, a query sees.
        width, heads: d and h; h divides d.
        stride: s of keys and values.
        scale: of the scores, 'width', 1/sqrt(d) as the public CvT, or 'heads', 1/sqrt(e).
        dictionary: external tokens that every query reads too, beside the projected keys and values, or None.
        kernel: 'softmax' or 'relu', in which no scale counts.
        masked: run full attention under the scheme's visibility matrix, the slow definition.
    Raises:
        ConfigError: the heads do not divide the width, an unknown scale, or a kernel that does not fit.
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
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        require(scale in ("width", "heads"), f"model.scale={scale!r} must be width or heads.")
        require(
            kernel in ("softmax", "relu"),
            f"model.kernel={kernel!r} must be softmax or relu here: convolved keys "
            "have no order in which cosine could weigh them.",
        )
        self.scheme, self.heads, self.stride, self.dropout, self.masked = scheme, heads, stride, dropout, masked
        self.scale, self.kernel = heads**-0.5 if scale == "width" else 1.0, kernel
        self.dictionary = nnx.data(dictionary)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.near = nnx.List(
            Convolution(width, width, 3, stride=s, groups=width, dtype=dtype, rngs=rngs) for s in (1, stride, stride)
        )
        self.qkv = nnx.List(Linear(width, width, kernel_init=square_init, dtype=dtype, rngs=rngs) for _ in "qkv")
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        return add_branch(tokens, *self.branch(tokens), self.dropout, noise)

    def branch(self, tokens: Tokens):
        """The update without the residual: patches (b t y x d), classes (b c d) or None where there are none."""
        patches, classes = self.norm(tokens.patches), self.norm(tokens.class_tokens)
        patches = [self._heads(project(near(patches))) for near, project in zip(self.near, self.qkv, strict=True)]
        classes = [self._heads(project(classes)) for project in self.qkv]
        patches[0], classes[0] = patches[0] * self.scale, classes[0] * self.scale
        patches, classes = (self.out(rearrange(x, "... h e -> ... (h e)")) for x in self.attend(patches, classes))
        return patches, classes if classes.shape[1] else None

    def attend(self, patches, classes):
        return (self._masked if self.masked else self._gathered)(patches, classes)

    def _heads(self, x):
        return rearrange(x, "... (h e) -> ... h e", h=self.heads)

    def _gathered(self, patches, classes):
        grid, count = patches[0].shape[1:4], classes[0].shape[1]
        groups = [self.scheme.fold(x) for x in patches]
        if count:
            shared = groups[0].shape[1]
            require(count == shared, f"{count} class tokens cannot be shared out to {shared} groups.")
            groups = [jnp.concatenate([one[:, :, None], x], axis=2) for one, x in zip(classes, groups, strict=True)]
        out = attend(*groups, dictionary=self.dictionary, kernel=get_kernel(self.kernel, masked=False))
        if not count:
            return self.scheme.unfold(out, grid), out[:, :0, 0]
        return self.scheme.unfold(out[:, :, 1:], grid), out[:, :, 0]

    def _masked(self, patches, classes):
        grid, count = patches[0].shape[1:4], classes[0].shape[1]
        q, k, v = (
            jnp.concatenate([one, rearrange(x, "b t y x h e -> b (t y x) h e")], axis=1)
            for one, x in zip(classes, patches, strict=True)
        )
        # Class token i stands in frame i; in a joint group it does not matter where. Neither scheme asks for y and x.
        query, key = (np.concatenate([np.arange(count), np.indices(x.shape[1:4])[0].ravel()]) for x in patches[:2])
        mask = self.scheme.visible(Position(*[query[:, None]] * 3), Position(*[key[None]] * 3))
        out = attend(q, k, v, mask, dictionary=self.dictionary, kernel=get_kernel(self.kernel, masked=True))
        return rearrange(out[:, count:], "b (t y x) h e -> b t y x h e", t=grid[0], y=grid[1]), out[:, :count]

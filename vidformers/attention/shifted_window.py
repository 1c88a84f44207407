"""Shifted-window attention: inside 3-D windows of the grid, shifted by half a window in every other block."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.kernels import softmax
from vidformers.errors import require
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch

table_init = nnx.initializers.truncated_normal(0.02)


class ShiftedWindowAttention(nnx.Module):
    """tokens + W_O attend(LN tokens) inside windows, with a relative position bias (Video Swin eq. 1, 2).

    As in the code of the authors and of torchvision: an axis of the grid that is not longer than the window is one
    window and is not shifted. Other axes are padded to whole windows after the norm, and queries attend to the padding.
    On a small grid the window is clipped: token i of the clipped window takes the bias of token i of the full window.
    If only time is clipped, as at 224 pixels, this equals the bias of the true displacement.

    Args:
        width: d.
        heads: h, which divides d.
        window: (t, y, x) in patches.
        shifted: whether windows start half a window later on each axis. The remainders at both ends are windows, too.
        dictionary: learned keys and values that every query attends to as well, without bias or mask; or None.
        kernel: 'softmax'. The other kernels have no scores to which a bias can be added.
        dropout: rate of dropout on the branch.
        masked: runs the masked form, attention over all tokens under a mask. This slow form is the reference in tests.

    Raises:
        ConfigError: the heads do not divide the width, the window is impossible, or the kernel is not softmax.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: tuple[int, int, int],
        shifted: bool,
        dictionary: Dictionary | None = None,
        kernel: str = "softmax",
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        require(
            len(window) == 3 and min(window) >= 1,
            f"model.window={tuple(window)} is not a window. Set three numbers (t, y, x) of at least 1 patch.",
        )
        require(
            kernel == "softmax",
            f"model.kernel={kernel!r} has no scores, to which window attention adds its position bias. Use "
            "model.kernel=softmax.",
        )
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.dropout, self.masked, self.kernel = dropout, masked, softmax
        self.dictionary = nnx.data(dictionary)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(table_init(rngs.params(), (int(np.prod([2 * w - 1 for w in window])), heads)))

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t n d), and None, because Swin has no class tokens."""
        qkv = self.qkv(self.padded(self.norm(tokens.maps)))
        q, k, v = rearrange(qkv, "b t y x (s h e) -> s b t y x h e", s=3, h=self.heads)
        out = self.attend(q, k, v, tokens.grid)
        return self.out(rearrange(out, "b t y x h e -> b t (y x) (h e)")), None

    def padded(self, patches):
        """Returns patches (b t y x d) with zeros added, so that the window divides the grid."""
        grid = patches.shape[1:4]
        return jnp.pad(patches, [(0, 0), *((0, -n % w) for n, w in zip(grid, self.clip(grid)[0], strict=True)), (0, 0)])

    def attend(self, q, k, v, grid):
        """Returns the outputs of the heads (b t y x h e) on the grid (t, y, x), of padded q, k, v (b t y x h e)."""
        window, shift = self.clip(grid)
        out = (self._masked if self.masked else self._gathered)(q, k, v, window, shift)
        return out[:, : grid[0], : grid[1], : grid[2]]

    def clip(self, grid):
        """Returns the window (t, y, x) on this grid, and its shift."""
        window = tuple(map(min, grid, self.window))
        return window, tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(grid, self.window, strict=True))

    def _gathered(self, q, k, v, window, shift):
        grid = q.shape[1:4]
        # After the roll, the windows at the two ends of an axis share one full window, in which a mask separates them.
        q, k, v = (_fold(jnp.roll(x, [-s for s in shift], (1, 2, 3)), window) for x in (q, k, v))
        window_index, _ = _window_indices(grid, window, shift)
        window_index = _fold(np.roll(window_index, [-s for s in shift], (0, 1, 2))[None], window)[0]
        mask = (window_index[:, :, None] == window_index[:, None, :])[:, None] if any(shift) else None
        out = compute_attention(
            q, k, v, mask, bias=self._bias(np.arange(np.prod(window))), dictionary=self.dictionary, kernel=self.kernel
        )
        return jnp.roll(_unfold(out, grid, window), shift, (1, 2, 3))

    def _masked(self, q, k, v, window, shift):
        grid = q.shape[1:4]
        window_index, token_index = (x.ravel() for x in _window_indices(grid, window, shift))
        q, k, v = (rearrange(x, "b t y x h e -> b (t y x) h e") for x in (q, k, v))
        out = compute_attention(
            q,
            k,
            v,
            window_index[:, None] == window_index,
            bias=self._bias(token_index),
            dictionary=self.dictionary,
            kernel=self.kernel,
        )
        return rearrange(out, "b (t y x) h e -> b t y x h e", t=grid[0], y=grid[1])

    def _bias(self, token_index):
        """Returns the bias (h q k) between tokens with these indices (n) in their full window."""
        return rearrange(self.table[...][self.rows(token_index)], "q k h -> h q k")

    def rows(self, token_index):
        """Returns the rows (q k) of the bias table for pairs of tokens with these indices (n) in their full window."""
        position = np.stack(np.unravel_index(token_index, self.window))
        displacement = position[:, :, None] - position[:, None] + np.array(self.window)[:, None, None] - 1
        return np.ravel_multi_index(tuple(displacement), [2 * w - 1 for w in self.window])


def _fold(patches, window):
    """Returns windows (b g n ...) of patches (b t y x ...)."""
    i, j, k = window
    return rearrange(patches, "b (t i) (y j) (x k) ... -> b (t y x) (i j k) ...", i=i, j=j, k=k)


def _unfold(windows, grid, window):
    """Returns patches (b t y x ...) of windows (b g n ...)."""
    (t, y, _), (i, j, k) = (n // w for n, w in zip(grid, window, strict=True)), window
    return rearrange(windows, "b (t y x) (i j k) ... -> b (t i) (y j) (x k) ...", t=t, y=y, i=i, j=j, k=k)


def _window_indices(grid, window, shift):
    """Returns for every patch (t y x) the index of its window, and the index of the patch in the window."""
    shifted = [np.arange(n) - s for n, s in zip(grid, shift, strict=True)]
    # + 1: the remainder before the first whole window has the coordinate -1.
    windows = np.meshgrid(*(x // w + 1 for x, w in zip(shifted, window, strict=True)), indexing="ij")
    patches = np.meshgrid(*(x % w for x, w in zip(shifted, window, strict=True)), indexing="ij")
    counts = [n // w + 2 for n, w in zip(grid, window, strict=True)]
    return np.ravel_multi_index(windows, counts), np.ravel_multi_index(patches, window)

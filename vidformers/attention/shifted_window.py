"""Shifted-window attention: inside 3-D windows of the grid, which move by half their size in every other block."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import attend, check_heads
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.kernels import softmax
from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import Noise, Tokens, add_branch

table_init = nnx.initializers.truncated_normal(0.02)


class ShiftedWindowAttention(nnx.Module):
    """tokens + W_O attend(LN tokens) inside windows, scores biased by relative position (Video Swin eq. 1, 2).

    As its authors' code and torchvision's: an axis of the grid no longer than the window is one window and not shifted;
    other axes are padded, after the norm, to whole windows, and the padding is read. Entry i of a clipped window takes
    the bias of entry i of the whole one: that of its displacement where time alone is clipped, as at 224 pixels.

    Args:
        width, heads: d and h; h divides d.
        window: (t, y, x) in patches.
        shifted: windows start half a window later on each axis, and what is left at the two ends are windows too.
        dictionary: external tokens that every query reads too, without bias and never masked, or None.
        kernel: 'softmax'; the others have no scores to which a bias could be added.
        masked: run full attention under the visibility matrix, the slow definition, instead of by windows.
    Raises:
        ConfigError: the heads do not divide the width, an impossible window, or another kernel than softmax.
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
            f"model.window={tuple(window)} must be three numbers (t, y, x) of at least 1 patch.",
        )
        require(
            kernel == "softmax",
            f"model.kernel={kernel!r} has no scores to which window attention could add its "
            "position bias: use model.kernel=softmax.",
        )
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.dropout, self.masked, self.kernel = dropout, masked, softmax
        self.dictionary = nnx.data(dictionary)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(table_init(rngs.params(), (int(np.prod([2 * w - 1 for w in window])), heads)))

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        return add_branch(tokens, *self.branch(tokens), self.dropout, noise)

    def branch(self, tokens: Tokens):
        """The update without the residual: patches (b t y x d), and None for class tokens, which Swin has not."""
        qkv = self.qkv(self.padded(self.norm(tokens.patches)))
        qkv = rearrange(qkv, "b t y x (s h e) -> s b t y x h e", s=3, h=self.heads)
        out = self.attend(*qkv, tokens.patches.shape[1:4])
        return self.out(rearrange(out, "b t y x h e -> b t y x (h e)")), None

    def padded(self, patches):
        """Patches (b t y x d) of a grid that the window divides."""
        grid = patches.shape[1:4]
        return jnp.pad(patches, [(0, 0), *((0, -n % w) for n, w in zip(grid, self.clip(grid)[0], strict=True)), (0, 0)])

    def attend(self, q, k, v, grid):
        """Padded (b t y x h e) each -> what they read, on the grid."""
        out = (self._masked if self.masked else self._gathered)(q, k, v, *self.clip(grid))
        return out[:, : grid[0], : grid[1], : grid[2]]

    def clip(self, grid):
        """The window (t, y, x) on this grid and how far it is shifted."""
        window = tuple(map(min, grid, self.window))
        return window, tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(grid, self.window, strict=True))

    def _gathered(self, q, k, v, window, shift):
        grid = q.shape[1:4]
        # Rolled, the windows at the two ends of an axis share one window of full size, in which a mask parts them.
        q, k, v = (_fold(jnp.roll(each, [-s for s in shift], (1, 2, 3)), window) for each in (q, k, v))
        home, _ = _places(grid, window, shift)
        home = _fold(np.roll(home, [-s for s in shift], (0, 1, 2))[None], window)[0]
        mask = (home[:, :, None] == home[:, None, :])[:, None] if any(shift) else None
        out = attend(
            q, k, v, mask, bias=self._bias(np.arange(np.prod(window))), dictionary=self.dictionary, kernel=self.kernel
        )
        return jnp.roll(_unfold(out, grid, window), shift, (1, 2, 3))

    def _masked(self, q, k, v, window, shift):
        grid = q.shape[1:4]
        home, entry = (each.ravel() for each in _places(grid, window, shift))
        q, k, v = (rearrange(each, "b t y x h e -> b (t y x) h e") for each in (q, k, v))
        out = attend(
            q, k, v, home[:, None] == home, bias=self._bias(entry), dictionary=self.dictionary, kernel=self.kernel
        )
        return rearrange(out, "b (t y x) h e -> b t y x h e", t=grid[0], y=grid[1])

    def _bias(self, entry):
        """(h q k): the bias between tokens that are these entries (n) of a window."""
        return rearrange(self.table[...][self.rows(entry)], "q k h -> h q k")

    def rows(self, entry):
        """(q k): the row of the table that is of two tokens which are these entries (n) of a window."""
        place = np.stack(np.unravel_index(entry, self.window))
        apart = place[:, :, None] - place[:, None] + np.array(self.window)[:, None, None] - 1
        return np.ravel_multi_index(tuple(apart), [2 * w - 1 for w in self.window])


def _fold(patches, window):
    """b t y x ... -> b g n ..., n the tokens of a window."""
    i, j, k = window
    return rearrange(patches, "b (t i) (y j) (x k) ... -> b (t y x) (i j k) ...", i=i, j=j, k=k)


def _unfold(windows, grid, window):
    """b g n ... -> b t y x ..."""
    (t, y, _), (i, j, k) = (n // w for n, w in zip(grid, window, strict=True)), window
    return rearrange(windows, "b (t y x) (i j k) ... -> b (t i) (y j) (x k) ...", t=t, y=y, i=i, j=j, k=k)


def _places(grid, window, shift):
    """For every patch of the grid (t y x), which window it is in and as which entry of it."""
    where = [np.arange(n) - s for n, s in zip(grid, shift, strict=True)]
    homes = np.meshgrid(*(p // w + 1 for p, w in zip(where, window, strict=True)), indexing="ij")
    entries = np.meshgrid(*(p % w for p, w in zip(where, window, strict=True)), indexing="ij")
    counts = [n // w + 2 for n, w in zip(grid, window, strict=True)]
    return np.ravel_multi_index(homes, counts), np.ravel_multi_index(entries, window)

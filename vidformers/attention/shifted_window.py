"""Shifted-window attention: inside 3-D windows of the grid, shifted by half a window in every other block."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend
from vidformers.errors import require
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch
from vidformers.layers.windows import fold, shift_windows, unfold, unshift_windows
from vidformers.parallel.activations import batch_shards, has_context, shard_activations

table_init = nnx.initializers.truncated_normal(0.02)


class ShiftedWindowAttention(nnx.Module):
    """tokens + W_O attend(LN tokens) inside windows, with a relative position bias (Video Swin eq. 1, 2).

    Windows are made in rows of the width d, before the projections, which then yield heads.

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
        backend: the implementation of softmax in the gathered form, one of `fused.BACKENDS`.
        dropout: rate of dropout on the branch.
        masked: runs the masked form, attention over all tokens under a mask. This slow form is the reference in tests.

    Raises:
        ConfigError: the heads do not divide the width, the window is impossible, the kernel is not softmax, or the
            backend is unknown or not applicable.
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
        backend: str = "auto",
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
        check_backend(backend, kernel, dtype, width // heads)
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.dropout, self.masked, self.kernel, self.backend = dropout, masked, kernel, backend
        self.dictionary = nnx.data(dictionary)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.table = nnx.Param(table_init(rngs.params(), (int(np.prod([2 * w - 1 for w in window])), heads)))

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t n d), and None, because Swin has no class tokens."""
        grid, (window, shift) = tokens.grid, self.clip(tokens.grid)
        if tokens.window is not None:
            windows = self.norm(shift_windows(tokens.patches, grid, window, shift))
            return unshift_windows(self._update(windows, grid), grid, window, shift), None
        maps = self.unfold(self._update(self.fold(self.norm(tokens.maps), grid), grid), grid)
        return maps.reshape(tokens.patches.shape), None

    def _update(self, windows, grid):
        """Returns W_O attend(windows) of normalised windows (b g m d) of the grid (t, y, x)."""
        q, k, v = self.qkv.to_heads(windows, 3, self.heads)
        return self.out.from_heads(self.attend(q, k, v, grid))

    def fold(self, maps, grid):
        """Returns windows (b g m d) of maps (b t y x d), with zeros added so that the window divides the grid."""
        window, shift = self.clip(grid)
        padding = [(0, -n % w) for n, w in zip(grid, window, strict=True)]
        return fold(jnp.pad(maps, [(0, 0), *padding, (0, 0)]), window, shift)

    def unfold(self, windows, grid):
        """Returns maps (b t y x d) of windows (b g m d): the inverse of `fold`."""
        window, shift = self.clip(grid)
        t, y, x = grid
        return unfold(windows, _padded(grid, window), window, shift)[:, :t, :y, :x]

    def attend(self, q, k, v, grid):
        """Returns the outputs of the heads (b g m h e) in windows of the grid (t, y, x), of q, k, v (b g m h e)."""
        window, shift = self.clip(grid)
        return (self._masked if self.masked else self._gathered)(q, k, v, _padded(grid, window), window, shift)

    def clip(self, grid):
        """Returns the window (t, y, x) on this grid, and its shift."""
        window = tuple(map(min, grid, self.window))
        return window, tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(grid, self.window, strict=True))

    def window_index(self, grid) -> np.ndarray:
        """Returns the index of the window of every patch (t y x). A patch attends to the patches of its window."""
        window, shift = self.clip(grid)
        t, y, x = grid
        return _window_indices(_padded(grid, window), window, shift)[0][:t, :y, :x]

    def _gathered(self, q, k, v, grid, window, shift):
        # After the roll, the windows at the two ends of an axis share one full window, in which a mask separates them.
        mask, (window_index, _) = None, _window_indices(grid, window, shift)
        if any(shift):
            index = fold(jnp.asarray(window_index)[None, ..., None], window, shift)[0, ..., 0]
            mask = (index[:, :, None] == index[:, None, :])[:, None]
        table, b, shards = self.table[...], q.shape[0], batch_shards()
        if shards > 1 and not has_context() and b % shards == 0:
            # Every shard of the batch gets a table of its own, so that it sums the gradient of the bias to the table
            # before the devices exchange it. The bias of Swin-T has 60 times as many elements as the table.
            q, k, v = (x.reshape(shards, -1, *x.shape[1:]) for x in (q, k, v))
            table = shard_activations(jnp.broadcast_to(table, (shards, 1, 1, *table.shape)), None)
        bias = self._bias(table, _in_window(window))
        kernel = attention_kernel(self.kernel, self.backend)
        out = compute_attention(q, k, v, mask, bias=bias, dictionary=self.dictionary, kernel=kernel)
        return out.reshape(b, *out.shape[-4:])

    def _masked(self, q, k, v, grid, window, shift):
        def merge(x):
            return x.reshape(*x.shape[:3], -1)

        window_index, token_index = (x.ravel() for x in _window_indices(grid, window, shift))
        q, k, v = (
            rearrange(unfold(merge(x), grid, window, shift), "b t y x (h e) -> b (t y x) h e", h=self.heads)
            for x in (q, k, v)
        )
        out = compute_attention(
            q,
            k,
            v,
            window_index[:, None] == window_index,
            bias=self._bias(self.table[...], token_index),
            dictionary=self.dictionary,
            kernel=attention_kernel(self.kernel, self.backend, masked=True),
        )
        heads = out.shape[2]
        maps = rearrange(out, "b (t y x) h e -> b t y x (h e)", t=grid[0], y=grid[1])
        return rearrange(fold(maps, window, shift), "b g m (h e) -> b g m h e", h=heads)

    def _bias(self, table, token_index):
        """Returns the bias (... h q k) of a table (... n h), between tokens with these indices in their full window."""
        return jnp.moveaxis(table[..., self.rows(token_index), :], -1, -3)

    def rows(self, token_index):
        """Returns the rows (q k) of the bias table for pairs of tokens with these indices (n) in their full window."""
        position = np.stack(np.unravel_index(token_index, self.window))
        displacement = position[:, :, None] - position[:, None] + np.array(self.window)[:, None, None] - 1
        return np.ravel_multi_index(tuple(displacement), [2 * w - 1 for w in self.window])


def _in_window(window):
    """Returns the indices of the tokens of a window in its own order (t, y, x), in the order of `fold`."""
    return np.moveaxis(np.arange(np.prod(window)).reshape(window), 0, -1).ravel()


def _padded(grid, window):
    """Returns the grid (t, y, x) with each axis rounded up to whole windows."""
    return tuple(-(-n // w) * w for n, w in zip(grid, window, strict=True))


def _window_indices(grid, window, shift):
    """Returns for every patch (t y x) the index of its window, and the index of the patch in the window."""
    shifted = [np.arange(n) - s for n, s in zip(grid, shift, strict=True)]
    # + 1: the remainder before the first whole window has the coordinate -1.
    windows = np.meshgrid(*(x // w + 1 for x, w in zip(shifted, window, strict=True)), indexing="ij")
    patches = np.meshgrid(*(x % w for x, w in zip(shifted, window, strict=True)), indexing="ij")
    counts = [n // w + 2 for n, w in zip(grid, window, strict=True)]
    return np.ravel_multi_index(windows, counts), np.ravel_multi_index(patches, window)

"""STAT's attention: patches of the current frame, averaged patches of near frames, one token of every frame."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend
from vidformers.attention.groups import tile
from vidformers.attention.scheme import with_neighbours
from vidformers.errors import require
from vidformers.layers.convolution import Conv, mean_pool
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch, tokens_of_maps
from vidformers.parallel.target import target_platform

POOL_NORMS = ("keys", "mvit", "none")


class HeadNorm(nnx.Module):
    """LN of each head's part of tokens (... d), with one scale and bias (d/h) for all heads."""

    def __init__(self, width: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = nnx.LayerNorm(width // heads, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.norm(x.reshape(*x.shape[:-1], self.heads, -1)).reshape(x.shape)


class ShrinkingAttention(nnx.Module):
    """tokens + W_O attend(Q, [K_CA, K_SA, K_LA]) of LN tokens, with one class token per frame (STAT eq. 1-9).

    A query of frame i, a patch or the class token, attends to three levels of keys and values.
        Current: the patches of frame i, pooled by a depthwise 3 x 3 convolution (eq. 2).
        Short-term: the pooled patches of frames i-r .. i+r without i, r = window // 2, averaged over 2 x 2 cells
            (eq. 3). Frames beyond the ends of the clip are hidden; the paper does not define them.
        Long-term: one token of every frame, which is not pooled (eq. 6).
    Unlike eq. 8, there is an output projection, and scores are scaled by the width of a head.

    Args:
        width: d.
        heads: h, which divides d.
        kv_stride: stride of the convolutions that pool keys and values.
        pool_queries: halves the grid. A depthwise 3 x 3 convolution of stride 2 pools the queries of patches, and
            max-pooling their residual. Class tokens are never pooled.
        pool_norm: what is normalised after pooling. The paper's equations have no norm, 'none'. 'keys': the pooled keys
            and values of patches. 'mvit': each head of the keys and values of patches and class tokens, and of the
            queries where they are pooled, as MViT's code does.
        window: t_o, odd. With 1 there is no short-term attention.
        long_key: 'class' for the class tokens, 'mean' for the means of a frame's keys and values before pooling (Table
            3), or 'none' for no long-term attention, where class tokens are queries only.
        dictionary: learned keys and values that every query attends to as well, or None.
        kernel: 'softmax' or 'relu'. 'cosine' is not applicable, because these keys have no order.
        backend: the implementation of softmax in the gathered form, one of `fused.BACKENDS`.
        dropout: rate of dropout on the branch.
        masked: runs the masked form, attention over all tokens under a mask. This slow form is the reference in tests.

    Raises:
        ConfigError: the heads do not divide the width, the window is even, or long_key, pool_norm, kernel or backend is
            unknown or not applicable.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_stride: int = 1,
        pool_queries: bool = False,
        pool_norm: str = "keys",
        window: int = 3,
        long_key: str = "class",
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
        require(window >= 1 and window % 2 == 1, f"model.window={window} is not centred. Set an odd number of frames.")
        require(
            long_key in ("class", "mean", "none"), f"model.long_key={long_key!r} is unknown. Use class, mean or none."
        )
        require(
            pool_norm in POOL_NORMS, f"model.pool_norm={pool_norm!r} is unknown. Use one of {', '.join(POOL_NORMS)}."
        )
        require(
            kernel in ("softmax", "relu"),
            f"model.kernel={kernel!r} is not applicable, because pooled keys have no order. Use softmax or relu.",
        )
        self.heads, self.radius, self.long_key, self.dropout = heads, window // 2, long_key, dropout
        self.kv_stride = kv_stride
        self.kernel, self.backend, self.masked, self.dictionary = kernel, backend, masked, nnx.data(dictionary)
        compute = dict(dtype=dtype, rngs=rngs)
        pool = partial(Conv, width, width, (3, 3), padding=1, feature_group_count=width, use_bias=False, **compute)
        self.norms_class_tokens = pool_norm == "mvit"

        def make_norm(is_query: bool = False):
            if pool_norm == "mvit":
                return HeadNorm(width, heads, **compute)
            return nnx.LayerNorm(width, epsilon=1e-6, **compute) if pool_norm == "keys" and not is_query else None

        self.norm = nnx.LayerNorm(width, epsilon=1e-6, **compute)
        self.norm_k, self.norm_v = nnx.data(make_norm()), nnx.data(make_norm())
        self.norm_q = nnx.data(make_norm(is_query=True) if pool_queries else None)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, **compute)
        self.pool_q = nnx.data(pool(strides=2) if pool_queries else None)
        self.pool_k, self.pool_v = pool(strides=kv_stride), pool(strides=kv_stride)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, **compute)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        branch = self.branch(tokens)
        if self.pool_q is not None:
            maps = nnx.max_pool(tokens.maps, (1, 3, 3), strides=(1, 2, 2), padding=((0, 0), (1, 1), (1, 1)))
            tokens = tokens_of_maps(maps, tokens.class_tokens)
        return add_branch(tokens, branch, self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t n d), and class tokens (b t d)."""
        if target_platform() == "tpu" and not self.masked and not callable(self.kernel):
            return self._branch_by_products(tokens)
        patches, class_tokens = (
            jnp.stack(jnp.split(self.qkv(self.norm(x)), 3, axis=-1)) for x in (tokens.maps, tokens.class_tokens)
        )
        q = patches[0] if self.pool_q is None else _apply(self.norm_q, self.pool_q(patches[0]))
        class_q, *class_parts = self._normalise_class_tokens(class_tokens)
        out = self.attend(q, class_q, self.levels(patches[1:], jnp.stack(class_parts), self.pool))
        out = self.out(rearrange(out, "... h e -> ... (h e)"))
        return out[:, :, 1:], out[:, :, 0]

    def _branch_by_products(self, tokens: Tokens):
        """Returns the same as `branch` in a layout for TPUs.

        The frames of all clips lie on one axis. Heads come from products, since XLA copies an array whose axis d is
        reshaped to h e: e fills a part of a tile. Class tokens join their frames as queries alone, because keys of
        patches are pooled on their grid. Keys of all frames and of near frames precede those of the frame, because
        their numbers are mostly multiples of a tile.
        """
        b, (t, y, x) = tokens.patches.shape[0], tokens.grid
        patches, class_tokens = tile(tokens.patches, may_share=False)[0], tokens.class_tokens
        lead, d = patches.shape[:2], patches.shape[-1]

        def join(patches, class_tokens):
            return jnp.concatenate([patches.reshape(*lead, -1, d), class_tokens.reshape(*lead, 1, d)], axis=2)

        patches, class_tokens = self.norm(patches), self.norm(class_tokens)
        # XLA drops the products that are not used.
        (q, *parts), (class_q, *class_parts) = (
            [part[..., 0, :] for part in self.qkv.to_heads(x, 3, 1)] for x in (patches, class_tokens)
        )
        class_q, *class_parts = self._normalise_class_tokens((class_q, *class_parts))
        if self.pool_q is None:
            q = self.qkv.to_heads(join(patches, class_tokens), 3, self.heads)[0]
        else:
            q = self._split_heads(join(_apply(self.norm_q, self.pool_q(q.reshape(b, t, y, x, d))), class_q))
        keys_values, mask = [], None
        for part, class_part, pool, norm in zip(
            parts, class_parts, (self.pool_k, self.pool_v), (self.norm_k, self.norm_v), strict=True
        ):
            levels = self.levels(
                part.reshape(1, b, t, y, x, d), class_part[None], lambda x, f=pool, g=norm: _apply(g, f(x))
            )
            gathered, mask = _gather(reversed(list(levels)), t)
            keys_values.append(self._split_heads(gathered.reshape(*lead, -1, d)))
        if mask is not None:
            mask = np.tile(mask, (lead[1] // t, 1, 1, 1))
        k, v = keys_values
        out = self.out.from_heads(self._attention(q, k, v, mask)).reshape(b, t, -1, d)
        return out[:, :, :-1], out[:, :, -1]

    def _split_heads(self, x):
        """Returns (... h e) of (... d). On TPUs a product with the unit matrix is faster than a reshape."""
        unit = jnp.eye(x.shape[-1], dtype=x.dtype).reshape(x.shape[-1], self.heads, -1)
        return jnp.einsum("...d,dhe->...he", x, unit, precision=jax.lax.Precision.HIGHEST)

    def _attention(self, q, k, v, mask):
        """Returns the outputs of the heads (..., q h e), see `compute_attention`."""
        kernel = attention_kernel(self.kernel, self.backend, masked=self.masked)
        return compute_attention(q, k, v, mask, dictionary=self.dictionary, kernel=kernel)

    def pool(self, patches):
        """Returns pooled and normalised keys and values (s b t y x d), of patches (s b t y x d), s = 2."""
        k, v = self.pool_k(patches[0]), self.pool_v(patches[1])
        return jnp.stack([_apply(self.norm_k, k), _apply(self.norm_v, v)])

    def _normalise_class_tokens(self, parts):
        """Returns queries, keys and values of class tokens, normalised as those of pooled patches if MViT's are."""
        norms = (self.norm_q, self.norm_k, self.norm_v) if self.norms_class_tokens else (None,) * 3
        return [_apply(norm, part) for norm, part in zip(norms, parts, strict=True)]

    def levels(self, patches, class_tokens, pool):
        """Yields for each level the keys and values of every frame, and which frames a query attends to.

        Args:
            patches: keys and values of patches (s b t y x d), s = 2.
            class_tokens: keys and values of class tokens (s b t d).
            pool: as `self.pool`.

        Yields:
            (tokens, offsets): tokens (s b t n d) are n keys and values per frame. Queries of frame i attend to the
            tokens of frames i + offset, or to those of all frames if `offsets` is None.
        """
        pooled = pool(patches)
        yield rearrange(pooled, "s b t y x d -> s b t (y x) d"), [0]
        if self.radius:
            neighbours = [offset for offset in range(-self.radius, self.radius + 1) if offset]
            yield rearrange(mean_pool(pooled, 2), "s b t y x d -> s b t (y x) d"), neighbours
        if self.long_key != "none":
            yield (class_tokens if self.long_key == "class" else patches.mean((3, 4)))[:, :, :, None], None

    def attend(self, q, class_tokens, levels):
        """Returns the outputs of the heads (b t 1+n h e) for the class token and the patches of each frame.

        Args:
            q: queries of patches (b t y x d).
            class_tokens: queries of class tokens (b t d).
            levels: as `self.levels`.
        """
        q = jnp.concatenate([class_tokens[:, :, None], rearrange(q, "b t y x d -> b t (y x) d")], axis=2)
        queries, keys, values, mask = _masked(q, levels) if self.masked else _gathered(q, levels)
        queries, keys, values = (rearrange(x, "... (h e) -> ... h e", h=self.heads) for x in (queries, keys, values))
        out = self._attention(queries, keys, values, mask)
        return out.reshape(*q.shape[:3], *out.shape[-2:])


def _apply(norm, x):
    return x if norm is None else norm(x)


def _gathered(q, levels):
    """Returns the gathered form, one group per frame: q (b t q d), k, v (b t k d), and the mask (t 1 1 k) or None."""
    keys, mask = _gather(levels, q.shape[1])
    return q, *keys, mask


def _gather(levels, t: int):
    """Returns the keys and values of each of t frames (s b t k d), and which are visible (t 1 1 k), None if all are."""
    keys, visible = [], []
    for level, offsets in levels:
        if offsets is None:
            keys.append(repeat(level, "s b k n d -> s b t (k n) d", t=t))
            visible.append(np.ones((t, t * level.shape[3]), bool))
            continue
        keys.append(jax.vmap(partial(with_neighbours, offsets=offsets))(level))
        frames = np.arange(t)[:, None] + offsets
        visible.append(np.repeat((frames >= 0) & (frames < t), level.shape[3], axis=1))
    mask = np.concatenate(visible, axis=1)
    return jnp.concatenate(keys, axis=3), None if mask.all() else mask[:, None, None]


def _masked(q, levels):
    """Returns the masked form, the tokens of all frames on one axis: q (b q d), k, v (b k d), and the mask (q k)."""
    frames = np.arange(q.shape[1])
    query_frames, keys, visible = np.repeat(frames, q.shape[2])[:, None], [], []
    for level, offsets in levels:
        distance = np.repeat(frames, level.shape[3]) - query_frames
        keys.append(rearrange(level, "s b t n d -> s b (t n) d"))
        visible.append(np.isin(distance, offsets) if offsets else np.ones_like(distance, bool))
    return rearrange(q, "b t q d -> b (t q) d"), *jnp.concatenate(keys, axis=2), np.concatenate(visible, axis=1)

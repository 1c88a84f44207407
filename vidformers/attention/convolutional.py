"""CvT's attention: convolutions of each frame compute the queries, and the keys and values at half the resolution."""

import math

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.core import compute_attention
from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend
from vidformers.attention.joint import Joint
from vidformers.attention.scheme import Position, Scheme
from vidformers.errors import require
from vidformers.layers.convolution import Convolution
from vidformers.layers.linear import Linear, check_heads, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch
from vidformers.parallel.target import target_platform


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
        is_by_place = self.time_last and tokens.is_by_place
        if is_by_place:
            maps = rearrange(tokens.patches, "b 1 (y x t) d -> b y x t d", t=tokens.grid[0], y=tokens.grid[1])
        else:
            maps = self._arrange(tokens.maps)
        maps, class_tokens = self.norm(maps), self.norm(tokens.class_tokens)
        q, k, v = (
            project.to_heads(self._join(near(maps), class_tokens), 1, self.heads)[0]
            for near, project in zip(self.near, self.qkv, strict=True)
        )
        groups = self.out.from_heads(self.attend(q * self.scale, k, v, tokens.grid))
        if is_by_place:
            return self._split(groups, tokens.grid)
        return self.scatter(groups, tokens.grid)

    def gather(self, maps, class_tokens):
        """Returns the tokens of all groups (b g m d), the class token of each group last.

        Args:
            maps: patches (b t y x d), on the grid of queries or of keys.
            class_tokens: (b c d).
        """
        return self._join(self._arrange(maps), class_tokens)

    def scatter(self, groups, grid):
        """Returns patches (b t n d), and class tokens (b c d) or None, of groups (b g m d) of queries."""
        patches, class_tokens = self._split(groups, grid)
        if self.time_last:
            return rearrange(patches, "b 1 (n t) d -> b t n d", t=grid[0]), class_tokens
        return self.scheme.unfold(patches, grid), class_tokens

    def attend(self, q, k, v, grid):
        """Returns the outputs of the heads (b g m h e) for the queries of all groups.

        Args:
            q, k, v: (b g m h e), in the order of `gather`. Keys and values have a coarser grid than queries.
            grid: (t, y, x), of the queries.
        """
        if self.masked:
            return self._masked(q, k, v, grid)
        kernel = attention_kernel(self.kernel, self.backend)
        return compute_attention(q, k, v, dictionary=self.dictionary, kernel=kernel)

    @property
    def time_last(self) -> bool:
        """Whether the frames of a place lie side by side: maps are (b y x t d), and not ((b t) y x d).

        On TPUs the frames then fill tiles, and convolutions and groups move whole tiles. `Tokens.by_place` are faster.
        """
        return isinstance(self.scheme, Joint) and target_platform() == "tpu"

    def _arrange(self, maps):
        """Returns maps as the convolutions take them, of maps (b t y x d)."""
        return rearrange(maps, "b t y x d -> b y x t d" if self.time_last else "b t y x d -> (b t) y x d")

    def _join(self, maps, class_tokens):
        """Returns the tokens of all groups (b g m d), of maps from `_arrange` and class tokens (b c d)."""
        b, count, _ = class_tokens.shape
        if self.time_last:
            groups = rearrange(maps, "b y x t d -> b 1 (y x t) d")
        else:
            frames = rearrange(maps, "(b t) y x d -> b t (y x) d", b=b)
            groups = self.scheme.fold(frames, (frames.shape[1], *maps.shape[1:3]))
        if not count:
            return groups
        require(
            count == groups.shape[1],
            f"{count} class tokens cannot be distributed to {groups.shape[1]} groups. Use one class token per group.",
        )
        return jnp.concatenate([groups, class_tokens[:, :, None]], axis=2)

    def _split(self, groups, grid):
        """Returns patches (b g m d), and class tokens (b c d) or None, of groups (b g m d) of queries."""
        count = math.prod(grid) // groups.shape[1]
        return groups[:, :, :count], None if groups.shape[2] == count else groups[:, :, -1]

    def _masked(self, q, k, v, grid):
        """The masked form of `attend`: the tokens of all groups on one axis."""

        def frames(x):
            """Returns the frames of all tokens, of queries or keys x. Class token i has the frame i."""
            t, patches = grid[0], x.shape[1] * x.shape[2] - has_class * x.shape[1]
            maps = jnp.broadcast_to(jnp.arange(t)[None, :, None, None, None], (1, t, 1, patches // t, 1))
            class_tokens = jnp.arange(has_class * x.shape[1])[None, :, None]
            return self.gather(maps, class_tokens).ravel()

        has_class = q.shape[1] * q.shape[2] > math.prod(grid)
        # The frame index stands for t, y and x alike, since `Frame` compares only t and `Joint` compares nothing.
        query, key = (Position(*[index] * 3) for index in (frames(q)[:, None], frames(k)[None]))
        visible = self.scheme.visible(query, key)
        q_flat, k_flat, v_flat = (rearrange(x, "b g m h e -> b (g m) h e") for x in (q, k, v))
        kernel = attention_kernel(self.kernel, self.backend, masked=True)
        out = compute_attention(q_flat, k_flat, v_flat, visible, dictionary=self.dictionary, kernel=kernel)
        return out.reshape(*q.shape[:3], *out.shape[2:])

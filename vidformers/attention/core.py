"""Attention that all schemes share: projections, kernel, dictionary, residual. A scheme decides what attends to what.

A scheme partitions the patches into groups. Inside a group, every patch attends to every patch. Some schemes first
replace heads or tokens of queries, keys and values by those of neighbouring frames (`Scheme.shift_in_time`).

There are two forms:

- Gathered: reorders the patches into groups and computes attention inside each group. Models run this form.
- Masked: computes attention over all tokens, under a mask. This slow form is the reference in tests (masked=True).

tests/attention/test_registry.py compares the two forms of every registered scheme, compares the gathered form with
the expected keys that the scheme lists, and compares one device with eight.

In the gathered form:

- Class tokens: the class token of a group is prepended to its keys and, with `class_queries`, to its queries, so that
  one matmul covers patches and class token.
- Padding: `Scheme.fold` may pad a group with zeros. A mask hides them as keys, and `Scheme.unfold` drops them as
  queries.
- Context parallelism shards the frame axis. The communication depends on `Scheme.group_extent`:
  - 'frame': none. A group has patches of one frame.
  - 'time': an all-to-all moves the sharding from frames to groups, whose number is padded to a multiple of `context`.
    A second all-to-all moves it back. If padding would add more than 25% of the groups, the case 'clip' applies.
  - 'clip': keys and values are all-gathered, and queries stay sharded by frame.

Axes: b clips, t frames, y x patches of a frame, d width; b c d class tokens (c = 0, 1 per clip, or 1 per frame);
g groups, n tokens of a group, h heads, e width of a head. In a shape, q counts queries and k counts keys.
"""

import math
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import check_backend, softmax_kernel
from vidformers.attention.kernels import KERNELS, KeyValues, get_kernel, softmax
from vidformers.attention.scheme import Position, Scheme
from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import LayerRng, Tokens, add_branch
from vidformers.parallel.activations import padded_length, shard_activations, shard_batch_unless_context

# A context variable, so that `models.encoder.Stage` can set it without passing it through every sublayer.
_remat_attention = ContextVar("whether attention weights are rematerialised in the backward pass", default=False)


def compute_attention(
    q, k, v, mask=None, *, bias=None, angle=None, dictionary: Dictionary | None = None, kernel=softmax
):
    """Returns the outputs of the heads (..., q h e).

    A dictionary with hybrid='multi_view' has its own set of heads (HaViT sec. 3.2). The result then has 2h heads.

    Args:
        q: queries (..., q h e).
        k, v: keys and values (..., k h e).
        mask: broadcasts to (..., h q k); False hides a key.
        bias, angle: those of `kernels.KeyValues`.
        dictionary: learned keys and values that every query attends to as well, or None.
        kernel: computes attention from queries and a list of `KeyValues`; see `kernels`.
    """
    # Batched matmuls with heads as a leading axis are 1.5 times as fast on CPUs.
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))

    def heads_first(q, k, v):
        internal = KeyValues(k, v, mask, bias, angle)
        return kernel(q, [internal]) if dictionary is None else dictionary.hybrid_attention(kernel, q, internal)

    if _remat_attention.get():
        heads_first = jax.checkpoint(heads_first)
    return jnp.swapaxes(heads_first(q, k, v), -2, -3)


@contextmanager
def remat_attention():
    """Makes `compute_attention` rematerialise attention weights in the backward pass, from q, k and v."""
    token = _remat_attention.set(True)
    try:
        yield
    finally:
        _remat_attention.reset(token)


class SelfAttention(nnx.Module):
    """A residual attention sublayer: tokens + W_O attend(LN tokens), pre-norm (ViT; MEViT eq. 3-8).

    With `class_keys`, class tokens are keys of every group. With `class_queries`, they are also queries: a single class
    token is copied to every group, and its update is the mean over its copies (as in TimeSformer's space attention).

    Args:
        scheme: decides which patches each patch attends to.
        width: d.
        heads: h, which divides d.
        class_keys: whether class tokens are keys.
        class_queries: whether class tokens are queries. They must then be keys.
        extra_projection: adds a d -> d linear map after W_O that starts at zero (TimeSformer's `temporal_fc`).
        dictionary: learned keys and values that every query attends to as well, or None.
        kernel: 'softmax', 'relu' or 'cosine' (see `kernels`). The cost of 'relu' and 'cosine' is linear in the number
            of keys. 'relu' has weights ReLU(q).ReLU(k) (HaViT sec. 3.2). 'cosine' multiplies these weights by the
            cosine of an angle that grows with the distance of query and key in the group (cosFormer), so it does not
            support class tokens.
            `vidformers.inference.explain` replaces the attribute `kernel` by a function after construction.
        cosine_index: how 'cosine' measures this distance: 'sequence' in tokens of the group, 't' in frames.
        backend: the implementation of softmax in the gathered form: 'einsum'; 'xla' or 'cudnn', which are
            implementations of `jax.nn.dot_product_attention`; or 'auto'.
        dropout: rate of dropout on the branch.
        masked: runs the masked form, for tests.

    Raises:
        ConfigError: the heads do not divide the width, or a kernel or a backend is unknown or not applicable.
    """

    def __init__(
        self,
        scheme: Scheme,
        width: int,
        heads: int,
        *,
        class_keys: bool = True,
        class_queries: bool = True,
        extra_projection: bool = False,
        dictionary: Dictionary | None = None,
        kernel: str = "softmax",
        cosine_index: str = "sequence",
        backend: str = "auto",
        dropout: float = 0.0,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        check_heads(width, heads)
        check_backend(backend, kernel, dtype, width // heads)
        require(
            class_keys or not class_queries,
            "class_queries=True needs class_keys=True: a class token attends to itself.",
        )
        require(kernel in KERNELS, f"model.kernel={kernel!r} is unknown. Use one of {', '.join(KERNELS)}.")
        require(
            cosine_index in ("sequence", "t"), f"model.cosine_index={cosine_index!r} is unknown. Use sequence or t."
        )
        require(
            kernel != "cosine" or (scheme.ordered and not class_keys),
            "model.kernel=cosine scales weights by the distance of query and key, so it does not support class tokens "
            "as keys or shifted keys. Use model.kernel=softmax or relu.",
        )
        self.scheme, self.heads, self.dropout, self.masked = scheme, heads, dropout, masked
        self.kernel, self.cosine_index, self.backend = kernel, cosine_index, backend
        self.has_angles = kernel == "cosine"  # stored, because `kernel` may be replaced by a function later
        # nnx.data, here and elsewhere, marks an attribute that holds a module or None. With a plain None, Flax would
        # treat the attribute as static and refuse a module later, as for `extra` below.
        self.dictionary = nnx.data(dictionary)
        self.class_keys, self.class_queries = class_keys, class_queries
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        # `square_init` initialises each d x d part of W_QKV like a separate projection.
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.extra = nnx.data(None)
        if extra_projection:
            self.extra = Linear(width, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t y x d), and class tokens (b c d).

        The second is None without class tokens or without `class_queries`.
        """
        grid = tokens.patches.shape[1:4]
        class_qkv = None
        if self.class_keys and tokens.class_tokens.shape[1]:
            class_qkv = self._class_qkv(tokens.class_tokens, self.group_mask(grid).shape[0])
        patches, class_copies = self.attend(self._qkv(tokens.patches), class_qkv, grid)
        patches = shard_activations(self._output_projection(patches))
        if class_copies is None:
            return patches, None
        return patches, shard_activations(merge_copies(self._output_projection(class_copies), tokens.class_tokens))

    def group_mask(self, grid):
        """Returns a NumPy array (g n), False at padding."""
        return self.scheme.fold(np.ones((1, *grid), bool))[0]

    def attend(self, patches_qkv, class_qkv, grid):
        """Returns the outputs of the heads for patches and class tokens.

        Args:
            patches_qkv: [q, k, v], each (b t y x h e).
            class_qkv: [q, k, v] of the class token of each group, each (b g h e), or None.
            grid: (t, y, x).
        Returns:
            Patches (b t y x h e), and class tokens (b g h e). The second is None without `class_queries`.
        """
        patches_qkv, class_qkv = self.scheme.shift_in_time(patches_qkv, class_qkv)
        form = self._masked if self.masked else self._gathered
        return form(patches_qkv, class_qkv, self.group_mask(grid), grid)

    def _qkv(self, x):
        """Returns q, k, v, each (... h e), of x (... d)."""
        # The constraint keeps GSPMD from sharding the projection like its parameters (see `shard_activations`).
        return [
            rearrange(projected, "... (h e) -> ... h e", h=self.heads)
            for projected in jnp.split(shard_batch_unless_context(self.qkv(self.norm(x))), 3, axis=-1)
        ]

    def _class_qkv(self, class_tokens, groups: int):
        """Returns q, k, v of the class token of each group, each (b g h e), of class tokens (b c d)."""
        count = class_tokens.shape[1]
        require(
            count in (1, groups),
            f"{count} class tokens cannot be distributed to {groups} groups. Use one per clip or one per group.",
        )
        # With `class_queries`, a single class token is copied to the groups before the projection, otherwise after it.
        # Both orders give the same values up to rounding. Their speed has not been compared.
        if self.class_queries or count == groups:
            return self._qkv(jnp.broadcast_to(class_tokens, (class_tokens.shape[0], groups, class_tokens.shape[2])))
        return [repeat(projected, "b 1 h e -> b g h e", g=groups) for projected in self._qkv(class_tokens)]

    def _output_projection(self, x):
        """Returns the output projection (... d) of the heads (... h e)."""
        x = self.out(rearrange(x, "... h e -> ... (h e)"))
        return x if self.extra is None else self.extra(x)

    def _gathered(self, patches_qkv, class_qkv, mask, grid):
        """The gathered form of `attend`, given the group mask (g n). After `fold`, the axes are (b g n h e)."""
        groups, extent = len(mask), self.scheme.group_extent  # extent: 'frame', 'time' or 'clip'
        angle = self._angles(mask, grid) if self.has_angles else None
        padded_groups = padded_length(groups) if extent == "time" else None  # None: groups are not sharded
        if extent != "frame" and padded_groups is None:
            # With context > 1, this all-gathers keys and values. With context = 1, it only fixes the batch sharding.
            q, k, v = patches_qkv
            patches_qkv = [q, shard_activations(k, context_axis=None), shard_activations(v, context_axis=None)]
        q, k, v = (self.scheme.fold(x) for x in patches_qkv)
        if padded_groups is not None:

            def shard_groups(x):
                return shard_activations(_pad_groups(x, padded_groups), context_axis=1)

            # Two constraints per array. The first shards frames, which `fold` puts outermost on the token axis. The
            # second shards groups, which takes an all-to-all. With the second alone, XLA (jaxlib 0.10.2) computes wrong
            # gradients of the projections' weights, silently: the input of a projection is sharded by frame, and the
            # cotangent of its output by patch.
            q, k, v = (shard_groups(shard_activations(x, context_axis=2)) for x in (q, k, v))
            class_qkv = class_qkv and [shard_groups(x) for x in class_qkv]
            # Padding groups get the mask of the last group: if all keys were hidden, softmax would give NaN.
            mask, angle = (
                x if x is None else np.pad(x, ((0, padded_groups - groups), (0, 0)), mode="edge") for x in (mask, angle)
            )
        if class_qkv is not None:
            class_q, class_k, class_v = (x[:, :, None] for x in class_qkv)
            k, v = jnp.concatenate([class_k, k], axis=2), jnp.concatenate([class_v, v], axis=2)
            mask = np.pad(mask, ((0, 0), (1, 0)), constant_values=True)
            if self.class_queries:
                q = jnp.concatenate([class_q, q], axis=2)
        out = compute_attention(
            q,
            k,
            v,
            None if mask.all() else mask[:, None, None, :],
            angle=None if angle is None else angle[:, None],
            dictionary=self.dictionary,
            kernel=softmax_kernel(self.backend) if self.kernel == "softmax" else get_kernel(self.kernel, masked=False),
        )
        # Without this constraint, GSPMD shards the head axis of the cotangents like W_O, which costs a reshard.
        out, class_out = shard_batch_unless_context(out), None
        if class_qkv is not None and self.class_queries:
            class_out, out = out[:, :groups, 0], out[:, :, 1:]
        if padded_groups is not None:  # the second all-to-all, in two constraints for the same reason
            out = shard_activations(shard_activations(out, context_axis=1), context_axis=2)[:, :groups]
        return shard_activations(self.scheme.unfold(out, grid)), class_out

    def _angles(self, mask, grid):
        """Returns pi/2 * i / length radians (g n), where i = 1, 2, ... is the index in the group, or the frame for 't'.

        cosFormer: the weight of a key is scaled by the cosine of the difference of the two angles.
        """
        index, length = np.broadcast_to(np.arange(mask.shape[1]), mask.shape), mask.shape[1]
        if self.cosine_index == "t":
            index, length = self.scheme.fold(np.indices(grid)[:1])[0], grid[0]
        return (index + 1) * (math.pi / 2 / length)

    def _masked(self, patches_qkv, class_qkv, mask, grid):
        """The masked form of `attend`, with the group mask (g n)."""
        positions = Position(*np.indices(grid))
        keys = Position(*(axis.ravel() for axis in positions))
        queries, groups = keys, len(mask)
        q, k, v = (rearrange(x, "b t y x h e -> b (t y x) h e") for x in patches_qkv)
        if class_qkv is not None:
            class_q, class_k, class_v = class_qkv
            # `Scheme.visible` takes positions. The class token of a group gets that of the group's first patch.
            class_positions = Position(*(self.scheme.fold(axis[None])[0, :, 0] for axis in positions))
            keys = Position(*map(np.concatenate, zip(class_positions, keys, strict=True)))
            k, v = jnp.concatenate([class_k, k], axis=1), jnp.concatenate([class_v, v], axis=1)
            if self.class_queries:
                queries, q = keys, jnp.concatenate([class_q, q], axis=1)
        visible = self.scheme.visible(
            Position(*(axis[:, None] for axis in queries)), Position(*(axis[None] for axis in keys))
        )
        angle = None
        if self.has_angles:
            angle = self.scheme.unfold(self._angles(mask, grid)[None], grid).reshape(1, -1)
        out = compute_attention(
            q, k, v, visible, angle=angle, dictionary=self.dictionary, kernel=get_kernel(self.kernel, masked=True)
        )
        shape = (out.shape[0], *grid, *out.shape[2:])
        if class_qkv is None or not self.class_queries:
            return out.reshape(shape), None
        return out[:, groups:].reshape(shape), out[:, :groups]


def _pad_groups(x, groups: int):
    """Returns x (b g ...) padded with zeros to this number of groups."""
    return jnp.pad(x, [(0, 0), (0, groups - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def merge_copies(copies, class_tokens):
    """Returns class tokens (b c ...) from one copy per group (b g ...): the mean over the copies if c = 1."""
    return copies.mean(axis=1, keepdims=True) if class_tokens.shape[1] == 1 else copies


def check_heads(width: int, heads: int) -> None:
    """Raises ConfigError if the heads do not divide the width."""
    # Up to 16, the largest number of heads in `models.config.SIZES`.
    divisors = ", ".join(str(n) for n in range(1, 17) if width % n == 0)
    require(
        heads > 0 and width % heads == 0,
        f"model.heads={heads} does not divide model.width={width}. Set model.heads to one of {divisors}.",
    )

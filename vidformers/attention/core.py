"""Attention that all schemes share: projections, kernel, dictionary, residual. A scheme decides what attends to what.

There are two forms, which `scheme.Scheme` describes:

- Gathered: moves the patches into groups and computes attention inside each group. Models run this form.
- Masked: computes attention over all tokens, under a mask. This slow form is the reference in tests (masked=True).

tests/attention/test_registry.py compares the two forms of every registered scheme, compares the gathered form with
the expected keys that the scheme lists, and compares one device with eight.

In the gathered form:

- Order: a permutation of tokens commutes with the norm and the projections. Tokens are therefore folded first, once, in
  rows of the width d, and everything else happens in groups. Folding queries, keys and values with their heads instead
  moves three arrays, whose axis e fills half a TPU tile (benchmarks/NOTES.md). Where folding first would repeat
  products, it comes after the projections.
- Class tokens: the class token of a group is the last token of the group. With `class_queries` it is a query and a key,
  otherwise only a key. Every query of the group attends to it, and as a query it attends to all patches of the group.
- Padding: `Scheme.fold` may pad a group with zeros. A mask hides them as keys, and `Scheme.unfold` drops them as
  queries.
- Tiles: on TPUs several small groups share a tile under a mask, see `groups.tile`.
- Context parallelism shards the frame axis. The communication depends on `Scheme.group_extent`:
  - 'frame': none, or the exchange of neighbouring groups. A group has patches of one frame or of consecutive ones.
  - 'time': an all-to-all moves the sharding from frames to groups, whose number is padded to a multiple of `context`.
    A second all-to-all moves it back. If padding would add more than 25% of the groups, the case 'clip' applies.
  - 'clip': keys and values are all-gathered, and queries stay sharded by frame.

Axes: b clips, t frames, n patches of a frame, d width; b c d class tokens (c = 0, 1 per clip, or 1 per frame);
g groups, m tokens of a group, h heads, e width of a head. In a shape, q counts queries and k counts keys.
"""

import math
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.dictionary import Dictionary, head_multiplier
from vidformers.attention.fused import attention_kernel, check_backend, rematerialised
from vidformers.attention.groups import group_mask, group_numbers, group_shape, pad_groups, shift, tile, untile
from vidformers.attention.kernels import KERNELS, KeyValues, softmax
from vidformers.attention.scheme import Scheme, numbered, position
from vidformers.errors import require
from vidformers.layers.linear import Linear, check_heads, square_init
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
    kernel = attention_kernel("softmax", "auto") if kernel is softmax else kernel
    if _remat_attention.get():
        kernel = rematerialised(kernel)
    internal = KeyValues(k, v, mask, bias, angle)
    return kernel(q, [internal]) if dictionary is None else dictionary.hybrid_attention(kernel, q, internal)


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
    Whatever `Scheme.visible` says, every query of a group attends to its class token, and the class token attends to
    every patch of its group.

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
        backend: the implementation of softmax in the gathered form, one of `fused.BACKENDS`.
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
        require(
            kernel == "softmax" or scheme.whole,
            f"model.kernel={kernel} sums over all keys of a group, so it cannot hide keys from single queries, as "
            f"{type(scheme).__name__} does. Use model.kernel=softmax.",
        )
        require(
            not (scheme.causal and class_keys),
            f"{type(scheme).__name__} is causal, but class_keys=True lets every frame attend to a class token, which "
            "has attended to later frames. Set class_keys=False and class_queries=False.",
        )
        self.scheme, self.heads, self.dropout, self.masked = scheme, heads, dropout, masked
        self.kernel, self.cosine_index, self.backend = kernel, cosine_index, backend
        self.has_angles = kernel == "cosine"  # stored, because `kernel` may be replaced by a function later
        # nnx.data, here and elsewhere, marks an attribute that holds a module or None. With a plain None, Flax would
        # treat the attribute as static and refuse a module later, as for `extra` below.
        self.dictionary = nnx.data(dictionary)
        self.class_keys, self.class_queries = class_keys, class_queries
        keeps_rows = scheme.keeps_patches and class_queries and not masked
        self.takes_joined = scheme.group_extent if keeps_rows else None
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
        """Returns the update without the residual: patches (b t n d), and class tokens (b c d).

        The second is None without class tokens or without `class_queries`.
        """
        if not self._folds_first(tokens):
            return self._project_then_fold(tokens)
        groups = self.gather(tokens)
        # Groups that shift are frames, whose place counts.
        tiles, count = tile(groups, may_share=not self._shifts) if self._merges_clips() else (groups, 1)
        # A shift that commutes with adding the bias comes before it. On TPUs the gradient of the bias is then a sum
        # that XLA joins to the product before it; after the shift it would be a pass of its own.
        early = self._shifts and not self.scheme.reads_zeros_beyond_clip
        q, k, v = self._qkv(self.norm(tiles), *[partial(shift, self.scheme, tokens.grid)] * early)
        out = self._output_projection(self.attend(q, k, v, tokens.grid, count, is_shifted=early))
        return self.scatter(untile(out, groups.shape), tokens)

    def _project_then_fold(self, tokens: Tokens):
        """Returns the same as `branch` would by folding first, with fewer products."""
        patches_qkv, class_qkv = (self._qkv(self.norm(x)) for x in (tokens.patches, tokens.class_tokens))
        q, k, v = (
            rearrange(
                self.gather(tokens.replace(patches=_merge_heads(patches), class_tokens=_merge_heads(class_tokens))),
                "b g m (h e) -> b g m h e",
                h=self.heads,
            )
            for patches, class_tokens in zip(patches_qkv, class_qkv, strict=True)
        )
        if self._has_class_keys(tokens) and not self.class_queries:
            q = q[:, :, :-1]
        out = self.attend(q, k, v, tokens.grid)
        updates = self.scatter(_merge_heads(out), tokens)
        heads = out.shape[-2]
        return tuple(
            None if x is None else self._output_projection(rearrange(x, "... (h e) -> ... h e", h=heads))
            for x in updates
        )

    def gather(self, tokens: Tokens):
        """Returns the tokens of all groups (b g m d), the class token of each group last if it is a key."""
        groups = tokens.patches if tokens.class_rows else self.scheme.fold(tokens.patches, tokens.grid)
        count, padded = groups.shape[1], self._sharded_groups(groups.shape[1])
        if padded is None:
            groups = shard_activations(groups, context_axis=2 if self.scheme.group_extent == "clip" else 1)
        else:
            # Two constraints. The first shards frames, which `fold` puts first in the token axis. The second shards
            # groups, which takes an all-to-all. With the second alone, XLA (jaxlib 0.10.2) computes wrong gradients of
            # the projections' weights, silently.
            groups = pad_groups(shard_activations(groups, context_axis=2), padded)
            groups = shard_activations(groups, context_axis=1)
        if not self._has_class_keys(tokens):
            return groups
        require(
            tokens.class_tokens.shape[1] in (1, count),
            f"{tokens.class_tokens.shape[1]} class tokens cannot be distributed to {count} groups. Use one per clip or "
            "one per group.",
        )
        copies = jnp.broadcast_to(tokens.class_tokens, (groups.shape[0], count, groups.shape[-1]))
        copies = pad_groups(copies, groups.shape[1])
        return jnp.concatenate([groups, copies[:, :, None]], axis=2)

    def scatter(self, groups, tokens: Tokens):
        """Returns patches (b t n d), and class tokens (b c d) or None, of the outputs of all groups (b g m d)."""
        count, size = group_shape(self.scheme, tokens.grid)
        patches = groups[:, :, : size + tokens.class_rows]
        if self._sharded_groups(count) is not None:  # the second all-to-all, in two constraints for the same reason
            patches = shard_activations(shard_activations(patches, context_axis=1), context_axis=2)
        if not tokens.class_rows:
            patches = self.scheme.unfold(patches[:, :count], tokens.grid)
        patches = shard_activations(patches)
        if not self._has_class_queries(tokens):
            return patches, None
        copies = groups[:, :count, size]
        if tokens.class_tokens.shape[1] == 1:
            copies = copies.mean(axis=1, keepdims=True)
        return patches, shard_activations(copies)

    def attend(self, q, k, v, grid, tiled: int = 1, is_shifted: bool = False):
        """Returns the outputs of the heads (b g m h e) for the tokens of all groups, in the order of `gather`.

        Args:
            q, k, v: (b g m h e). Without `class_queries`, q and the result lack the class tokens.
            grid: (t, y, x).
            tiled: groups per tile, if the arguments were tiled by `tile`.
            is_shifted: whether the arguments have been through `groups.shift`.
        """
        if self._shifts and not is_shifted:
            q, k, v = (shift(self.scheme, grid, x, i) for i, x in enumerate((q, k, v)))
        return (self._masked if self.masked else self._gathered)(q, k, v, grid, tiled)

    def _has_class_keys(self, tokens: Tokens) -> bool:
        return self.class_keys and tokens.class_tokens.shape[1] > 0

    def _has_class_queries(self, tokens: Tokens) -> bool:
        return self.class_queries and tokens.class_tokens.shape[1] > 0

    def _folds_first(self, tokens: Tokens) -> bool:
        """Whether tokens are folded before the norm and the projections, which then act on whole groups.

        This is not done where it would repeat products: for the padding of incomplete groups, and for copies of a class
        token that is only a key.
        """
        groups, patches = group_shape(self.scheme, tokens.grid)
        has_padding = groups * patches != math.prod(tokens.grid)
        return not has_padding and (self.class_queries or not self._has_class_keys(tokens))

    @property
    def _shifts(self) -> bool:
        """Whether `shift_in_time` changes queries, keys or values."""
        return type(self.scheme).shift_in_time != Scheme.shift_in_time

    def _merges_clips(self) -> bool:
        """Whether the groups of several clips may lie on one axis, and share a tile under a mask (`tile`).

        A scheme that reads neighbours finds them by their place on the axis g, which tiles change. Linear kernels sum
        over all rows. A recording kernel of `vidformers.inference.explain`, a function, needs the weights by group.
        """
        return self.kernel == "softmax" and not self.scheme.reads_neighbours and not self.masked

    def _sharded_groups(self, groups: int) -> int | None:
        """Returns the number of groups with padding if groups are sharded over `context`, else None."""
        return padded_length(groups) if self.scheme.group_extent == "time" else None

    def _qkv(self, x, *move):
        """Returns q, k, v, each (... h e), of normalised tokens (... d). `move` is that of `Linear.to_heads`."""
        qkv = self.qkv.to_heads(shard_batch_unless_context(x), 3, self.heads, *move)
        # The constraint keeps GSPMD from sharding the projection like its parameters (see `shard_activations`).
        return [shard_batch_unless_context(x) for x in qkv]

    def _output_projection(self, x):
        """Returns the output projection (... d) of the heads (... h e)."""
        x = self.out.from_heads(x)
        return x if self.extra is None else self.extra(x)

    def _gathered(self, q, k, v, grid, tiled):
        """The gathered form of `attend`."""
        scheme, extent = self.scheme, self.scheme.group_extent
        number = group_numbers(scheme, grid)
        padded = self._sharded_groups(number.shape[1])
        if padded is not None:
            number = pad_groups(number, padded)
        elif extent != "frame":
            # With context > 1, this all-gathers keys and values. With context = 1, it only fixes the batch sharding.
            k, v = (shard_activations(x, context_axis=None) for x in (k, v))
        key_number, patches = number, number.shape[2]
        if scheme.reads_neighbours:
            key_number = scheme.neighbourhood(number, grid)
            k, v = (
                jnp.concatenate([scheme.neighbourhood(x[:, :, :patches], grid), x[:, :, patches:]], axis=2)
                for x in (k, v)
            )
        out = compute_attention(
            q,
            k,
            v,
            group_mask(scheme, grid, number, key_number, (q.shape, k.shape), tiled),
            angle=self._angles(number, grid) if self.has_angles else None,
            dictionary=self.dictionary,
            kernel=attention_kernel(self.kernel, self.backend),
        )
        # Without this constraint, GSPMD shards the head axis of the cotangents like W_O, which costs a reshard.
        return shard_batch_unless_context(out)

    def _angles(self, number, grid):
        """Returns pi/2 * i / length radians (1 g m). i = 1, 2, ... is the rank in the group or, for 't', the frame.

        cosFormer: the weight of a key is scaled by the cosine of the difference of the two angles.
        """
        if self.cosine_index == "t":
            index, length = position(number, grid).t, grid[0]
        else:  # the rank by time, row and column, whatever the order in which `fold` puts the patches
            earlier = (number[..., None, :] < number[..., None]) & (number[..., None, :] > 0)
            index, length = earlier.sum(-1), number.shape[2]
        return (index + 1) * (math.pi / 2 / length)

    def _masked(self, q, k, v, grid, tiled):
        """The masked form of `attend`: all patches of the clip on one axis, then the class tokens of all groups."""
        scheme, number = self.scheme, group_numbers(self.scheme, grid)
        groups, patches = number.shape[1:]

        def ungroup(x):
            flat = scheme.unfold(x[:, :, :patches].reshape(*x.shape[:2], patches, -1), grid)
            flat = flat.reshape(x.shape[0], -1, *x.shape[3:])
            return jnp.concatenate([flat, x[:, :, patches:].reshape(x.shape[0], -1, *x.shape[3:])], axis=1)

        q_flat, k_flat, v_flat = map(ungroup, (q, k, v))
        everywhere = numbered(grid).reshape(-1)
        mask = scheme.visible(position(everywhere[:, None], grid), position(everywhere[None], grid))
        group_number = jnp.arange(groups)
        owner = jnp.broadcast_to(group_number[:, None, None], (groups, patches, 1))[None]
        owner = scheme.unfold(owner, grid).reshape(-1)
        of_group = owner[:, None] == group_number  # (t n) x groups: the class token is seen by, and sees, its group
        mask = jnp.concatenate([mask, of_group], axis=1)
        mask = jnp.concatenate([mask, jnp.concatenate([of_group.T, jnp.eye(groups, dtype=bool)], axis=1)], axis=0)
        mask = mask[: q_flat.shape[1], : k_flat.shape[1]]
        angle = None
        if self.has_angles:
            angle = scheme.unfold(self._angles(number, grid)[..., None], grid).reshape(1, -1)
        out = compute_attention(
            q_flat,
            k_flat,
            v_flat,
            mask,
            angle=angle,
            dictionary=self.dictionary,
            kernel=attention_kernel(self.kernel, self.backend, masked=True),
        )
        flat, class_out = jnp.split(out, [math.prod(grid)], axis=1)
        shape = (out.shape[0], groups, -1, *out.shape[2:])
        flat = scheme.fold(flat.reshape(out.shape[0], grid[0], grid[1] * grid[2], -1), grid).reshape(shape)
        return jnp.concatenate([flat, class_out.reshape(shape)] if class_out.size else [flat], axis=2)


def _merge_heads(x):
    """Returns (... d) of (... h e)."""
    return rearrange(x, "... h e -> ... (h e)")

"""The attention core shared by all schemes: projections, kernel, dictionary, residual. A scheme only chooses keys.

Axes: b clips, t frames, y x patches of a frame, d width; b c d class tokens (c = 0, 1 a clip, or one a frame);
g groups, n tokens of a group, h heads, e width of a head, q queries, k keys.

The gathered form folds patches into the groups of the scheme and attends inside each group. Queries: the class token of
a group is its first key and, if it queries, its first query, so that one product of matrices serves both. Padding:
`fold` may pad a group with zeros; a mask hides them as keys, and `unfold` drops them as queries. Context parallelism:
frames are sharded, so a group of one frame needs no communication. Groups with patches of every frame are resharded
instead: an all-to-all replaces the sharded axis of frames by that of groups, padded to a multiple of `context`, and a
second one goes back. Where that padding exceeds a quarter, and for groups of a whole clip, keys and values are
all-gathered and queries stay on the devices of their frames. tests/attention/test_registry.py compares the gathered
form of every registered scheme with the masked form and with its hand-written keys, and one device with eight.
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
from vidformers.parallel.activations import constrain, constrain_without_context, padded_count

_remat_attention = ContextVar("whether attention weights are rematerialised in the backward pass", default=False)


def compute_attention(
    q, k, v, mask=None, *, bias=None, angle=None, dictionary: Dictionary | None = None, kernel=softmax
):
    """Returns attention (..., q h e) of q (..., q h e), k (..., k h e) and v (..., k h e).

    A dictionary of two views doubles the heads of the result.

    Args:
        mask: broadcasts to (..., h q k); False hides a key.
        bias, angle: those of `kernels.KeyValues`.
        dictionary: external keys and values that every query reads too, or None.
        kernel: computes attention from queries and sources, see `kernels`.
    """
    # Heads come first: products with them as batch dimensions in front are 1.5 times as fast on CPUs.
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))

    def read(q, k, v):
        source = KeyValues(k, v, mask, bias, angle)
        return kernel(q, [source]) if dictionary is None else dictionary.hybrid_attention(kernel, q, source)

    return jnp.swapaxes((jax.checkpoint(read) if _remat_attention.get() else read)(q, k, v), -2, -3)


@contextmanager
def remat_attention():
    """Makes `attend` rematerialise attention weights in the backward pass, from q, k and v."""
    token = _remat_attention.set(True)
    try:
        yield
    finally:
        _remat_attention.reset(token)


class SelfAttention(nnx.Module):
    """A residual attention sublayer: tokens + W_O attend(LN tokens), pre-norm (ViT; MEViT eq. 3-8).

    With `class_keys`, class tokens are keys of every group. With `class_queries`, they also attend: a single class
    token is copied to every group, and its update is the mean over its copies (TimeSformer does so in space).

    Args:
        scheme: the keys of each query.
        width: d.
        heads: h, which divides d.
        class_keys: whether class tokens are keys.
        class_queries: whether class tokens are queries. They must then be keys.
        extra_projection: adds a d -> d linear map after W_O that starts at zero (TimeSformer's `temporal_fc`).
        dictionary: external tokens that every query reads too, or None.
        kernel: 'softmax', 'relu' or 'cosine'. The last two are linear in the number of keys. 'cosine' weighs keys by
            their distance in the order of the group, where a class token has no place.
        cosine_index: the order that 'cosine' uses: 'sequence', the order of the group, or 't', the frames alone.
        backend: the implementation of softmax in the gathered form: 'einsum', JAX's own function by 'xla' or 'cudnn',
            or 'auto'.
        dropout: rate of dropout on the branch.
        masked: runs full attention under the visibility matrix of the scheme, the slow definition, for tests.

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
            class_keys or not class_queries, "class_queries=True needs class_keys=True: a class token reads itself."
        )
        require(kernel in KERNELS, f"model.kernel={kernel!r} is unknown. Use one of {', '.join(KERNELS)}.")
        require(
            cosine_index in ("sequence", "t"), f"model.cosine_index={cosine_index!r} is unknown. Use sequence or t."
        )
        require(
            kernel != "cosine" or scheme.ordered and not class_keys,
            "model.kernel=cosine weighs keys by their distance in a sequence, where class tokens and shifted keys have "
            "no place. Use model.kernel=softmax or relu.",
        )
        self.scheme, self.heads, self.dropout, self.masked = scheme, heads, dropout, masked
        self.kernel, self.cosine_index, self.backend = kernel, cosine_index, backend
        self.has_angles = kernel == "cosine"
        self.dictionary = nnx.data(dictionary)
        self.class_keys, self.class_queries = class_keys, class_queries
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.extra = nnx.data(None)
        if extra_projection:
            self.extra = Linear(width, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        return add_branch(tokens, self.branch(tokens), self.dropout, rng)

    def branch(self, tokens: Tokens):
        """Returns the update without the residual: patches (b t y x d), and class tokens (b c d) or None.

        It is None for class tokens that do not query.
        """
        grid = tokens.patches.shape[1:4]
        patches, class_tokens = self._qkv(tokens.patches), None
        if self.class_keys and tokens.class_tokens.shape[1]:
            class_tokens = self._class_qkv(tokens.class_tokens, self.group_mask(grid).shape[0])
        patches, class_tokens = self.attend(patches, class_tokens, grid)
        patches = constrain(self._output_projection(patches))
        if class_tokens is None:
            return patches, None
        return patches, constrain(merge_copies(self._output_projection(class_tokens), tokens.class_tokens))

    def group_mask(self, grid):
        """Returns (g n), False at padding."""
        return self.scheme.fold(np.ones((1, *grid), bool))[0]

    def attend(self, patches, class_tokens, grid):
        """Returns the outputs of the heads for patches and class tokens.

        Args:
            patches: [q, k, v], each (b t y x h e).
            class_tokens: [q, k, v] of the class token of each group, each (b g h e), or None.
            grid: (t, y, x).

        Returns:
            (b t y x h e), and (b g h e) or None for class tokens that do not query.
        """
        patches, class_tokens = self.scheme.shift_in_time(patches, class_tokens)
        read = self._masked if self.masked else self._gathered
        return read(patches, class_tokens, self.group_mask(grid), grid)

    def _qkv(self, x):
        """Returns q, k, v, each (... h e), of x (... d)."""
        return [
            rearrange(projected, "... (h e) -> ... h e", h=self.heads)
            for projected in jnp.split(constrain_without_context(self.qkv(self.norm(x))), 3, axis=-1)
        ]

    def _class_qkv(self, class_tokens, groups: int):
        """Returns q, k, v of the class token of each group, each (b g h e), of class tokens (b c d)."""
        count = class_tokens.shape[1]
        require(
            count in (1, groups),
            f"{count} class tokens cannot be distributed to {groups} groups. Use one a clip or one a group.",
        )
        if self.class_queries or count == groups:
            return self._qkv(jnp.broadcast_to(class_tokens, (class_tokens.shape[0], groups, class_tokens.shape[2])))
        return [repeat(projected, "b 1 h e -> b g h e", g=groups) for projected in self._qkv(class_tokens)]

    def _output_projection(self, x):
        """Returns the output projection (... d) of the heads (... h e)."""
        x = self.out(rearrange(x, "... h e -> ... (h e)"))
        return x if self.extra is None else self.extra(x)

    def _gathered(self, patches, class_tokens, mask, grid):
        groups, extent = len(mask), self.scheme.group_extent
        angle = self._angles(mask, grid) if self.has_angles else None
        padded_groups = padded_count(groups) if extent == "time" else 0  # 0: frames stay sharded
        if extent != "frame" and not padded_groups:  # all-gather keys and values; queries stay with their frames
            patches = [patches[0], *(constrain(x, None) for x in patches[1:])]
        q, k, v = (self.scheme.fold(x) for x in patches)
        if padded_groups:  # all-to-all: shard groups instead of frames

            def shard_groups(x):
                return constrain(_pad_groups(x, padded_groups), 1)

            q, k, v = (shard_groups(constrain(x, 2)) for x in (q, k, v))
            class_tokens = class_tokens and [shard_groups(x) for x in class_tokens]
            mask, angle = (
                x if x is None else np.pad(x, ((0, padded_groups - groups), (0, 0)), mode="edge") for x in (mask, angle)
            )
        if class_tokens is not None:
            class_q, class_k, class_v = (x[:, :, None] for x in class_tokens)
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
        # Without this constraint cotangents inherit the sharding of heads from W_O and are resharded.
        out, class_out = constrain_without_context(out), None
        if class_tokens is not None and self.class_queries:
            class_out, out = out[:, :groups, 0], out[:, :, 1:]
        if padded_groups:
            out = constrain(constrain(out, 1), 2)[:, :groups]
        return constrain(self.scheme.unfold(out, grid)), class_out

    def _angles(self, mask, grid):
        """Returns (g n) radians above 0 and up to pi/2, over the group or, by `cosine_index`, over the frames."""
        index, length = np.broadcast_to(np.arange(mask.shape[1]), mask.shape), mask.shape[1]
        if self.cosine_index == "t":
            index, length = self.scheme.fold(np.indices(grid)[:1])[0], grid[0]
        return (index + 1) * (math.pi / 2 / length)

    def _masked(self, patches, class_tokens, mask, grid):
        place = Position(*np.indices(grid))
        keys = Position(*(axis.ravel() for axis in place))
        queries, groups = keys, len(mask)
        q, k, v = (rearrange(x, "b t y x h e -> b (t y x) h e") for x in patches)
        if class_tokens is not None:  # the class token of a group has the position of the group's first patch
            homes = Position(*(self.scheme.fold(axis[None])[0, :, 0] for axis in place))
            keys = Position(*map(np.concatenate, zip(homes, keys, strict=True)))
            k, v = jnp.concatenate([class_tokens[1], k], axis=1), jnp.concatenate([class_tokens[2], v], axis=1)
            if self.class_queries:
                queries, q = keys, jnp.concatenate([class_tokens[0], q], axis=1)
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
        if class_tokens is None or not self.class_queries:
            return out.reshape(shape), None
        return out[:, groups:].reshape(shape), out[:, :groups]


def _pad_groups(x, groups: int):
    """Returns x (b g ...) padded with zeros to this number of groups."""
    return jnp.pad(x, [(0, 0), (0, groups - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def merge_copies(copies, class_tokens):
    """Returns class tokens (b c ...) from one copy a group (b g ...): the mean over the copies if c = 1."""
    return copies.mean(axis=1, keepdims=True) if class_tokens.shape[1] == 1 else copies


def check_heads(width: int, heads: int) -> None:
    """Raises ConfigError if the heads do not divide the width."""
    divisors = ", ".join(str(n) for n in range(1, 17) if width % n == 0)
    require(
        heads > 0 and width % heads == 0,
        f"model.heads={heads} does not divide model.width={width}. Set model.heads to one of {divisors}.",
    )

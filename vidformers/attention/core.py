"""The one attention core: projections, kernel, dictionary, residual. A scheme says only which keys each query sees.

Axes: b clips, t frames, y x patches of a frame, d width; b c d class tokens (c = 0, 1 a clip, or one a frame);
g groups, n tokens of a group, h heads, e width of a head, q queries, k keys.
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
from vidformers.attention.kernels import KERNELS, Source, get_kernel, softmax
from vidformers.attention.scheme import Position, Scheme
from vidformers.errors import require
from vidformers.layers.linear import Linear, square_init
from vidformers.layers.tokens import Noise, Tokens, add_branch
from vidformers.parallel.activations import constrain, constrain_rows, padded_count

_remat_attention = ContextVar("attention weights are computed again in the backward pass", default=False)


def attend(q, k, v, mask=None, *, bias=None, angle=None, dictionary: Dictionary | None = None, kernel=softmax):
    """Attention (..., q h e), (..., k h e), (..., k h e) -> (..., q h e), or 2h of a dictionary with two views.

    `mask` broadcasts to (..., h q k); False hides a key. `bias` and `angle` are those of `kernels.Source`.
    """
    # Heads first: as batch dimensions in front they make products that CPUs run half again as fast.
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))

    def read(q, k, v):
        source = Source(k, v, mask, bias, angle)
        return kernel(q, [source]) if dictionary is None else dictionary.attend(kernel, q, source)

    return jnp.swapaxes((jax.checkpoint(read) if _remat_attention.get() else read)(q, k, v), -2, -3)


@contextmanager
def remat_attention():
    """Within it, `attend` keeps no weights for the backward pass, which computes them from q, k and v again."""
    token = _remat_attention.set(True)
    try:
        yield
    finally:
        _remat_attention.reset(token)


class SelfAttention(nnx.Module):
    """One residual attention sublayer: tokens + W_O attend(LN tokens), pre-norm (ViT; MEViT eq. 3-8).

    The class tokens are keys of every group if `class_keys`; if `class_queries` they also attend: a single class token
    is copied to every group and updated by the mean of what its copies read (TimeSformer's treatment in space).

    Args:
        scheme: which keys each query sees.
        width, heads: d and h; h divides d.
        class_keys, class_queries: the part class tokens take.
        extra_projection: a d -> d linear map after W_O that starts at zero (TimeSformer's `temporal_fc`).
        dictionary: external tokens that every query reads too, or None.
        kernel: 'softmax', 'relu' (linear in the number of keys) or 'cosine' (so too; weighs by distance in the order
            of the group, which leaves no place for a class token).
        cosine_index: 'sequence', the order of the group, or 't', the frames alone.
        backend: what computes softmax by groups: 'einsum', JAX's own function by 'xla' or 'cudnn', or 'auto'.
        masked: run full attention under the scheme's visibility matrix, the slow definition, instead of by groups.
    Raises:
        ConfigError: the heads do not divide the width, or a kernel or a backend that is unknown or does not fit.
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
        require(class_keys or not class_queries, "A class token that queries must be among the keys it reads.")
        require(kernel in KERNELS, f"model.kernel={kernel!r} must be one of {', '.join(KERNELS)}.")
        require(cosine_index in ("sequence", "t"), f"model.cosine_index={cosine_index!r} must be sequence or t.")
        require(
            kernel != "cosine" or scheme.ordered and not class_keys,
            "model.kernel=cosine weighs keys by their distance in a sequence, in which a class token and shifted "
            "keys have no place.",
        )
        self.scheme, self.heads, self.dropout, self.masked = scheme, heads, dropout, masked
        self.kernel, self.angled, self.cosine_index, self.backend = kernel, kernel == "cosine", cosine_index, backend
        self.dictionary = nnx.data(dictionary)
        self.class_keys, self.class_queries = class_keys, class_queries
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = Linear(head_multiplier(dictionary) * width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.extra = nnx.data(None)
        if extra_projection:
            self.extra = Linear(width, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        patches, classes = self.branch(tokens)
        return add_branch(tokens, patches, classes, self.dropout, noise)

    def branch(self, tokens: Tokens):
        """The update without the residual: patches (b t y x d), classes (b c d) or None where they only are keys."""
        patches, classes = self._heads(tokens.patches), None
        if self.class_keys and tokens.class_tokens.shape[1]:
            groups = self.group_mask(tokens.patches.shape[1:4]).shape[0]
            classes = self._class_heads(tokens.class_tokens, groups)
        patches, classes = self.attend(patches, classes, tokens.patches.shape[1:4])
        patches = constrain(self._project(patches))
        if classes is None:
            return patches, None
        return patches, constrain(merge_copies(self._project(classes), tokens.class_tokens))

    def group_mask(self, grid):
        """(g n): False marks padding."""
        return self.scheme.fold(np.ones((1, *grid), bool))[0]

    def attend(self, patches, classes, grid):
        """[q, k, v] of patches, each (b t y x h e), and of the class token of each group, (b g h e) or None -> what
        they read; None for class tokens that do not query."""
        patches, classes = self.scheme.move(patches, classes)
        read = self._masked if self.masked else self._gathered
        return read(patches, classes, self.group_mask(grid), grid)

    def _heads(self, x):
        """(... d) -> q, k, v, each (... h e)."""
        return [
            rearrange(each, "... (h e) -> ... h e", h=self.heads)
            for each in jnp.split(constrain_rows(self.qkv(self.norm(x))), 3, axis=-1)
        ]

    def _class_heads(self, classes, groups: int):
        """(b c d) -> q, k, v of the class token of each group, each (b g h e)."""
        count = classes.shape[1]
        require(count in (1, groups), f"{count} class tokens cannot be shared out to {groups} groups.")
        if self.class_queries or count == groups:
            return self._heads(jnp.broadcast_to(classes, (classes.shape[0], groups, classes.shape[2])))
        return [repeat(each, "b 1 h e -> b g h e", g=groups) for each in self._heads(classes)]

    def _project(self, x):
        """The heads' outputs (... h e) -> (... d)."""
        x = self.out(rearrange(x, "... h e -> ... (h e)"))
        return x if self.extra is None else self.extra(x)

    def _gathered(self, patches, classes, members, grid):
        groups, reach = len(members), self.scheme.reach
        angle = self._angles(members, grid) if self.angled else None
        filled = padded_count(groups) if reach == "time" else 0
        if reach != "frame" and not filled:  # queries stay where their frames are, and read the keys of all
            patches = [patches[0], *(constrain(x, None) for x in patches[1:])]
        q, k, v = (self.scheme.fold(x) for x in patches)
        if filled:  # frames come together, and groups part instead
            q, k, v = (constrain(_fill(constrain(x, 2), filled), 1) for x in (q, k, v))
            classes = classes and [constrain(_fill(x, filled), 1) for x in classes]
            members, angle = (
                x if x is None else np.pad(x, ((0, filled - groups), (0, 0)), mode="edge") for x in (members, angle)
            )
        mask = members
        if classes is not None:
            extra_q, extra_k, extra_v = (each[:, :, None] for each in classes)
            k, v = jnp.concatenate([extra_k, k], axis=2), jnp.concatenate([extra_v, v], axis=2)
            mask = np.pad(members, ((0, 0), (1, 0)), constant_values=True)
            if self.class_queries:
                q = jnp.concatenate([extra_q, q], axis=2)
        angle = angle if angle is None else angle[:, None]
        out = attend(
            q,
            k,
            v,
            None if mask.all() else mask[:, None, None, :],
            angle=angle,
            dictionary=self.dictionary,
            kernel=softmax_kernel(self.backend) if self.kernel == "softmax" else get_kernel(self.kernel, masked=False),
        )
        out, read_by_classes = (
            constrain_rows(out),
            None,
        )  # or cotangents come with heads apart, as W_O has them, and move
        if classes is not None and self.class_queries:
            read_by_classes, out = out[:, :groups, 0], out[:, :, 1:]
        if filled:
            out = constrain(constrain(out, 1), 2)[:, :groups]
        return constrain(self.scheme.unfold(out, grid)), read_by_classes

    def _angles(self, members, grid):
        """(g n) radians, from above 0 to a right angle over the group or, by `cosine_index`, over the frames."""
        index, length = np.broadcast_to(np.arange(members.shape[1]), members.shape), members.shape[1]
        if self.cosine_index == "t":
            index, length = self.scheme.fold(np.indices(grid)[:1])[0], grid[0]
        return (index + 1) * (math.pi / 2 / length)

    def _masked(self, patches, classes, members, grid):
        where = Position(*np.indices(grid))
        keys = Position(*(p.ravel() for p in where))
        queries, groups = keys, len(members)
        q, k, v = (rearrange(each, "b t y x h e -> b (t y x) h e") for each in patches)
        if classes is not None:  # the class token of a group stands where the group's first patch does
            homes = Position(*(self.scheme.fold(p[None])[0, :, 0] for p in where))
            keys = Position(*map(np.concatenate, zip(homes, keys, strict=True)))
            k, v = jnp.concatenate([classes[1], k], axis=1), jnp.concatenate([classes[2], v], axis=1)
            if self.class_queries:
                queries, q = keys, jnp.concatenate([classes[0], q], axis=1)
        mask = self.scheme.visible(Position(*(p[:, None] for p in queries)), Position(*(p[None] for p in keys)))
        angle = None
        if self.angled:
            angle = self.scheme.unfold(self._angles(members, grid)[None], grid).reshape(1, -1)
        out = attend(
            q, k, v, mask, angle=angle, dictionary=self.dictionary, kernel=get_kernel(self.kernel, masked=True)
        )
        shape = (out.shape[0], *grid, *out.shape[2:])
        if classes is None or not self.class_queries:
            return out.reshape(shape), None
        return out[:, groups:].reshape(shape), out[:, :groups]


def _fill(x, groups: int):
    """x (b g ...) with groups of zeros behind, for as many in all."""
    return jnp.pad(x, [(0, 0), (0, groups - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def merge_copies(copies, classes):
    """What the copies of a class token have read (b g ...), as class tokens (b c ...): of one, the mean."""
    return copies.mean(axis=1, keepdims=True) if classes.shape[1] == 1 else copies


def check_heads(width: int, heads: int) -> None:
    require(heads > 0 and width % heads == 0, f"model.heads={heads} must divide model.width={width}.")

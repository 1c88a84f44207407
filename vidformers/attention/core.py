"""The one attention core: projections, softmax attention, residual. A scheme says only which keys each query sees.

Axes: b clips, t frames, y x patches of a frame, d width; b c d class tokens (c = 0, 1 a clip, or one a frame);
g groups, n tokens of a group, h heads, e width of a head, q queries, k keys.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx

from vidformers.errors import require

# Glorot's bound for a square d -> d projection is that of fan-in scaling. Written so, one kernel that holds several
# square projections side by side starts as each of them would alone.
square_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Tokens(NamedTuple):
    """Patch tokens (b t y x d), never flattened between modules, and the class tokens (b c d) beside them."""

    patches: jax.Array
    classes: jax.Array


class Noise(NamedTuple):
    """What is random in a training pass through one layer; None in its place means evaluation."""

    key: jax.Array
    drop_path: jax.Array  # chance that a clip skips a residual branch of this layer (stochastic depth)

    def split(self, count: int) -> "list[Noise]":
        return [Noise(key, self.drop_path) for key in jax.random.split(self.key, count)]


class Position(NamedTuple):
    """Where tokens stand on the grid: integer arrays of one shape. A class token stands with its group."""

    t: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Scheme(Protocol):
    """A partition of the patch grid into groups, inside which every patch sees every patch.

    `fold` and `unfold` are the gathered form, which runs; `visible` is the masked form, which defines it.
    """

    def fold(self, patches):
        """b t y x ... -> b g n ..., padded with zeros at the end of a group where the grid does not divide."""

    def unfold(self, groups, grid: tuple[int, int, int]):
        """b g n ... -> b t y x ..., without the padding."""

    def visible(self, query: Position, key: Position) -> np.ndarray:
        """Whether a token at `query` sees the token at `key`, elementwise."""


def attend(q, k, v, mask=None):
    """Softmax attention (..., q h e), (..., k h e), (..., k h e) -> (..., q h e), scores scaled by 1/sqrt(e).

    `mask` broadcasts to (..., h q k); False hides a key. The softmax is taken in float32, or wider where q is.
    """
    # Heads first: as batch dimensions in front they make products that CPUs run half again as fast.
    q, k, v = (jnp.swapaxes(x, -2, -3) for x in (q, k, v))
    scores = jnp.einsum("...qe,...ke->...qk", q * q.shape[-1] ** -0.5, k)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.swapaxes(jnp.einsum("...qk,...ke->...qe", weights, v), -2, -3)


def dropout(x, rate: float, noise: Noise | None):
    """Inverted dropout; the identity in evaluation."""
    if noise is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(noise.key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def add_branch(tokens: Tokens, patches, classes, rate: float, noise: Noise | None) -> Tokens:
    """The residual: tokens + dropout(branch), the branch of a clip skipped as a whole by stochastic depth.

    A branch given as None leaves its tokens as they were, bit for bit.
    """
    if noise is None:
        return Tokens(*(x if dx is None else x + dx for x, dx in zip(tokens, (patches, classes))))
    path, *drops = noise.split(3)
    keep = 1.0 - noise.drop_path
    kept = jax.random.bernoulli(path.key, keep, (tokens.patches.shape[0],)) / keep

    def add(x, dx, drop):
        if dx is None:
            return x
        scale = kept.astype(dx.dtype).reshape(-1, *[1] * (dx.ndim - 1))
        return x + dropout(dx, rate, drop) * scale

    return Tokens(*map(add, tokens, (patches, classes), drops))


class SelfAttention(nnx.Module):
    """One residual attention sublayer: tokens + W_O attend(LN tokens), pre-norm (ViT; MEViT eq. 3-8).

    The class tokens are keys of every group if `class_keys`; if `class_queries` they also attend: a single class token
    is copied to every group and updated by the mean of what its copies read (TimeSformer's treatment in space).

    Args:
        scheme: which keys each query sees.
        width, heads: d and h; h divides d.
        class_keys, class_queries: the part class tokens take.
        extra_projection: a d -> d linear map after W_O that starts at zero (TimeSformer's `temporal_fc`).
        masked: run full attention under the scheme's visibility matrix, the slow definition, instead of by groups.
    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(self, scheme: Scheme, width: int, heads: int, *, class_keys: bool = True, class_queries: bool = True,
                 extra_projection: bool = False, dropout: float = 0.0, dtype=jnp.float32, masked: bool = False,
                 rngs: nnx.Rngs):
        check_heads(width, heads)
        require(class_keys or not class_queries, "A class token that queries must be among the keys it reads.")
        self.scheme, self.heads, self.dropout, self.masked = scheme, heads, dropout, masked
        self.class_keys, self.class_queries = class_keys, class_queries
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=square_init, dtype=dtype, rngs=rngs)
        self.extra = nnx.data(None)
        if extra_projection:
            self.extra = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        patches, classes = self.branch(tokens)
        return add_branch(tokens, patches, classes, self.dropout, noise)

    def branch(self, tokens: Tokens):
        """The update without the residual: patches (b t y x d), classes (b c d) or None where they only are keys."""
        grid = tokens.patches.shape[1:4]
        members = self.scheme.fold(np.ones((1, *grid), bool))[0]  # g n: False marks padding
        patches = self._heads(tokens.patches)
        classes, count = None, 0
        if self.class_keys and tokens.classes.shape[1]:
            classes, count = self._class_heads(tokens.classes, len(members)), 1
        read = self._masked if self.masked else self._gathered
        patches, classes = read(patches, classes, members, grid)
        patches = self._project(patches)
        if not (count and self.class_queries):
            return patches, None
        classes = self._project(classes)
        one = tokens.classes.shape[1] == 1
        return patches, classes.mean(axis=1, keepdims=True) if one else classes

    def _heads(self, x):
        """(... d) -> q, k, v, each (... h e)."""
        return [rearrange(each, "... (h e) -> ... h e", h=self.heads)
                for each in jnp.split(self.qkv(self.norm(x)), 3, axis=-1)]

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
        q, k, v = (self.scheme.fold(x) for x in patches)
        mask = members
        if classes is not None:
            extra_q, extra_k, extra_v = (each[:, :, None] for each in classes)
            k, v = jnp.concatenate([extra_k, k], axis=2), jnp.concatenate([extra_v, v], axis=2)
            mask = np.pad(members, ((0, 0), (1, 0)), constant_values=True)
            if self.class_queries:
                q = jnp.concatenate([extra_q, q], axis=2)
        out = attend(q, k, v, None if mask.all() else mask[:, None, None, :])
        if classes is None or not self.class_queries:
            return self.scheme.unfold(out, grid), None
        return self.scheme.unfold(out[:, :, 1:], grid), out[:, :, 0]

    def _masked(self, patches, classes, members, grid):
        where = Position(*np.indices(grid))
        keys = Position(*(p.ravel() for p in where))
        queries, groups = keys, len(members)
        q, k, v = (rearrange(each, "b t y x h e -> b (t y x) h e") for each in patches)
        if classes is not None:  # the class token of a group stands where the group's first patch does
            homes = Position(*(self.scheme.fold(p[None])[0, :, 0] for p in where))
            keys = Position(*map(np.concatenate, zip(homes, keys)))
            k, v = jnp.concatenate([classes[1], k], axis=1), jnp.concatenate([classes[2], v], axis=1)
            if self.class_queries:
                queries, q = keys, jnp.concatenate([classes[0], q], axis=1)
        mask = self.scheme.visible(Position(*(p[:, None] for p in queries)), Position(*(p[None] for p in keys)))
        out = attend(q, k, v, mask)
        shape = (out.shape[0], *grid, *out.shape[2:])
        if classes is None or not self.class_queries:
            return out.reshape(shape), None
        return out[:, groups:].reshape(shape), out[:, :groups]


def check_heads(width: int, heads: int) -> None:
    require(heads > 0 and width % heads == 0, f"model.heads={heads} must divide model.width={width}.")

"""Frames that look at their neighbours: MSCA's shifted heads and patches, and TokenShift's shifted class token."""

from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.registry import register
from vidformers.errors import require
from vidformers.layers.tokens import Noise, Tokens

BOUNDARIES = ("keep", "zero", "wrap")


def shift(x, axis: int, before: int, after: int, boundary: str):
    """(b t ...): along `axis`, the first `before` entries are those of frame t-1, the next `after` those of t+1.

    At the clip's ends `boundary` says what is taken for the frame that is not there: 'keep' the frame's own entries,
    'zero' zeros, 'wrap' those of the other end.
    """
    past, future, rest = jnp.split(x, [before, before + after], axis=axis)
    return jnp.concatenate([_neighbour(past, -1, boundary), _neighbour(future, 1, boundary), rest], axis=axis)


def _neighbour(x, step: int, boundary: str):
    moved = jnp.roll(x, -step, axis=1)
    if boundary == "wrap":
        return moved
    end = 0 if step < 0 else x.shape[1] - 1
    return moved.at[:, end].set(x[:, end] if boundary == "keep" else 0)


def check_boundary(boundary: str) -> None:
    require(boundary in BOUNDARIES, f"model.boundary={boundary!r} must be one of {', '.join(BOUNDARIES)}.")


@dataclass(frozen=True)
class Shifted(Frame):
    """Frame attention after some heads or tokens of some of Q, K, V were exchanged with neighbouring frames (MSCA).

    With heads of K and V, a query of frame t sees in the first `before` heads all tokens of frame t-1, in the next
    `after` those of t+1, in the others its own frame's (MSCA eq. 17). With patches, the first `before` tokens of
    every head are those of t-1; token 0 is the class token. The paper's bounds are off by one, and it leaves the ends
    open: here they keep the frame's own, so that a clip of one frame is an image to a ViT.

    Raises:
        ConfigError: an unknown direction, letter or boundary, or a negative number.
    """

    direction: str  # 'heads' or 'patches'
    moved: str  # letters of QKV
    before: int
    after: int
    boundary: str = "keep"
    ordered = False

    def __post_init__(self):
        require(self.direction in ("heads", "patches"), f"model.direction={self.direction!r} must be heads or patches.")
        require(
            bool(self.moved) and "".join(x for x in "QKV" if x in self.moved) == self.moved,
            f"model.moved={self.moved!r} must be one of Q, K, V, QK, QV, KV, QKV.",
        )
        require(
            self.before >= 0 and self.after >= 0,
            f"model.before={self.before} and model.after={self.after} must be at least 0.",
        )
        check_boundary(self.boundary)

    def move(self, patches, classes):
        pairs = [
            self._move(*pair) if name in self.moved else pair
            for name, *pair in zip("QKV", patches, classes, strict=True)
        ]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def _move(self, patches, classes):
        tokens = jnp.concatenate([classes[:, :, None], rearrange(patches, "b t y x h e -> b t (y x) h e")], axis=2)
        axis = 3 if self.direction == "heads" else 2
        tokens = shift(tokens, axis, self.before, self.after, self.boundary)
        return tokens[:, :, 1:].reshape(patches.shape), tokens[:, :, 0]


class TokenShift(nnx.Module):
    """The frames' class tokens (b t d): the first 1/`fold` of the channels from t-1, the next from t+1 (TokenShift).

    Not a branch: what follows takes the shifted tokens for its residual too, as the authors' code does.

    Raises:
        ConfigError: fewer than 2 folds, more folds than channels, or an unknown boundary.
    """

    def __init__(self, width: int, *, fold: int = 4, boundary: str = "zero", rngs: nnx.Rngs):
        require(2 <= fold <= width, f"model.fold={fold} must be between 2 and model.width={width}.")
        check_boundary(boundary)
        self.width, self.channels, self.boundary = width, width // fold, boundary

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        return tokens._replace(class_tokens=shift(tokens.class_tokens, 2, self.channels, self.channels, self.boundary))


def _keys(grid, t, y, x):
    """The frame and the frames before and after it."""
    frames = [s for s in (t - 1, t, t + 1) if 0 <= s < grid[0]]
    return [(s, j, i) for s in frames for j in range(grid[1]) for i in range(grid[2])]


register("shifted_heads", lambda: Shifted("heads", "KV", 1, 1), grid=(4, 3, 3), keys=_keys, class_tokens=("frame",))

"""Shifts between neighbouring frames: MSCA's shifted heads and patches, and TokenShift's shifted class token."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.attention.frame import Frame
from vidformers.attention.registry import register
from vidformers.errors import require
from vidformers.layers.tokens import LayerRng, Tokens

BOUNDARIES = ("keep", "zero", "wrap")
PLACEMENTS = ("first", "ends")


def shift(x, axis: int, before: int, after: int, boundary: str, placement: str = "first"):
    """Returns x (b t ...) with entries along `axis` replaced by those of neighbouring frames.

    Args:
        axis: the axis of the entries, not that of frames.
        before: number of entries taken from frame t-1.
        after: number of entries taken from frame t+1.
        boundary: replaces the missing neighbour at the two ends of the clip: 'keep' takes the entries of the frame
            itself, 'zero' zeros, 'wrap' the entries of the frame at the other end.
        placement: 'first': the first `before` entries and the next `after` entries. 'ends': the last `before` entries
            and the first `after` entries.
    """
    starts = (0, before) if placement == "first" else (x.shape[axis] - before, 0)
    x = _change_part(partial(_neighbour, step=-1, boundary=boundary), axis, starts[0], before, x)
    return _change_part(partial(_neighbour, step=1, boundary=boundary), axis, starts[1], after, x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _change_part(function, axis: int, start: int, size: int, x):
    """Returns x with function(part) in place of the part that starts at `start` of an axis, for a linear function.

    The gradient changes the same part of the cotangent and nothing else. So XLA moves this part alone, in place, and
    not all of x, whose parts JAX's own gradient would pad and add.
    """
    part = jax.lax.slice_in_dim(x, start, start + size, axis=axis)
    return jax.lax.dynamic_update_slice_in_dim(x, function(part), start, axis) if size else x


def _change_cotangent(function, axis, start, size, _, cotangent):
    def transposed(part):
        (result,) = jax.linear_transpose(function, part)(part)
        return result

    return (_change_part(transposed, axis, start, size, cotangent),)


_change_part.defvjp(lambda *args: (_change_part(*args), None), _change_cotangent)


def _neighbour(x, step: int, boundary: str):
    """Returns x (b t ...) with every frame replaced by the frame `step` later."""
    moved = jnp.roll(x, -step, axis=1)
    if boundary == "wrap":
        return moved
    end = 0 if step < 0 else x.shape[1] - 1
    return moved.at[:, end].set(x[:, end] if boundary == "keep" else 0)


def check_boundary(boundary: str) -> None:
    """Raises ConfigError if the boundary is not one of `BOUNDARIES`."""
    require(boundary in BOUNDARIES, f"model.boundary={boundary!r} is unknown. Use one of {', '.join(BOUNDARIES)}.")


@dataclass(frozen=True)
class Shifted(Frame):
    """Frame attention after some heads or tokens of Q, K or V are taken from neighbouring frames (MSCA).

    With shifted heads of K and V, a query of frame t attends to the tokens of frame t-1 in the first `before` heads, to
    those of frame t+1 in the next `after` heads, and to those of frame t in the others (MSCA eq. 17). With shifted
    patches, the first `before` tokens of every head come from frame t-1 and the next `after` tokens from frame t+1;
    token 0 is the class token. The bounds in the paper are off by one, and the paper does not define the ends of the
    clip. By default the first and the last frame keep their own entries, so that the model computes on a clip of one
    frame what ViT computes on an image.

    Attributes:
        direction: 'heads' or 'patches'.
        moved: letters of QKV.
        before: number of heads or tokens from frame t-1.
        after: number of heads or tokens from frame t+1.
        boundary, placement: see `shift`. The paper's placement is 'first'. With boundary='zero' and placement='ends'
            the scheme is that of the authors' code, `vit_models/modeling_attentionshift.py`.

    Raises:
        ConfigError: the direction, a letter, the boundary or the placement is unknown, patches are shifted at the ends,
            or a number is negative.
    """

    direction: str
    moved: str
    before: int
    after: int
    boundary: str = "keep"
    placement: str = "first"
    ordered = False

    def __post_init__(self):
        require(
            self.direction in ("heads", "patches"),
            f"model.direction={self.direction!r} is unknown. Use heads or patches.",
        )
        require(
            bool(self.moved) and "".join(x for x in "QKV" if x in self.moved) == self.moved,
            f"model.moved={self.moved!r} is unknown. Use one of Q, K, V, QK, QV, KV, QKV.",
        )
        require(
            self.before >= 0 and self.after >= 0,
            f"model.before={self.before} or model.after={self.after} is negative. Set both to at least 0.",
        )
        check_boundary(self.boundary)
        require(
            self.placement in PLACEMENTS,
            f"model.placement={self.placement!r} is unknown. Use one of {', '.join(PLACEMENTS)}.",
        )
        require(
            self.placement == "first" or self.direction == "heads",
            "model.placement=ends shifts heads, as the authors' code does. Set model.direction=heads.",
        )

    @property
    def reads_zeros_beyond_clip(self) -> bool:
        return self.boundary == "zero" and self.before + self.after > 0

    def shift_in_time(self, x, letter, class_rows):
        if letter not in self.moved:
            return x
        if self.direction == "heads":
            return shift(x, 3, self.before, self.after, self.boundary, self.placement)
        # The class token is the last row of a group, and token 0 in the paper.
        x = shift(jnp.roll(x, class_rows, axis=2), 2, self.before, self.after, self.boundary)
        return jnp.roll(x, -class_rows, axis=2)


class TokenShift(nnx.Module):
    """Shifts channels of the class tokens of frames (b t d) (TokenShift).

    The first 1/`fold` of the channels come from frame t-1, the next 1/`fold` from frame t+1. This is not a branch: the
    residual of the next sublayer holds the shifted tokens too, as in the authors' code.

    Raises:
        ConfigError: `fold` is below 2 or above the width, or the boundary is unknown.
    """

    def __init__(self, width: int, *, fold: int = 4, boundary: str = "zero", rngs: nnx.Rngs):
        require(2 <= fold <= width, f"model.fold={fold} is out of range. Set it between 2 and model.width={width}.")
        check_boundary(boundary)
        self.width, self.channels, self.boundary = width, width // fold, boundary
        self.takes_joined = "frame"

    @property
    def reads_zeros_beyond_clip(self) -> bool:
        """Whether zeros stand for the frames beyond the ends of the clip; see `Scheme.reads_zeros_beyond_clip`."""
        return self.boundary == "zero"

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:
        if tokens.class_rows:
            shifted = shift(tokens.patches[:, :, -1], 2, self.channels, self.channels, self.boundary)
            return tokens.replace(patches=tokens.patches.at[:, :, -1].set(shifted))
        return tokens.replace(class_tokens=shift(tokens.class_tokens, 2, self.channels, self.channels, self.boundary))


def _expected_keys(grid, t, y, x):
    """Returns the expected keys of patch (t, y, x): all patches of the frames t - 1, t and t + 1."""
    frames = [s for s in (t - 1, t, t + 1) if 0 <= s < grid[0]]
    return [(s, row, column) for s in frames for row in range(grid[1]) for column in range(grid[2])]


register(
    "shifted_heads",
    lambda: Shifted("heads", "KV", 1, 1),
    grid=(4, 3, 3),
    expected_keys=_expected_keys,
    class_tokens=("frame",),
)

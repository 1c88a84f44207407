"""The roles of the sublayers of a block when weights are loaded.

A block of an image model has one attention, in which every query attends to each patch of the frame once, and one
MLP. A block of a video model can have more sublayers. The role of an attention follows from which patches its queries
attend to. This module does not test for classes of schemes. It only calls `Scheme.visible`, so that a new scheme gets a
role without a change here.
"""

from enum import Enum
from functools import singledispatch
from typing import NamedTuple

import numpy as np

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.scheme import Position, Scheme
from vidformers.attention.shifted import TokenShift
from vidformers.errors import ConfigError
from vidformers.layers.mlp import Mlp
from vidformers.models.encoder import FramewiseEncoder

_PAIRS_AT_ONCE = 2**22  # (query, key) pairs in memory at a time


class Role(Enum):
    """The part of the weights of a block that a sublayer loads."""

    IMAGE = "the attention within a frame"
    TIME = "attention over time, which image models lack"
    EXTRA = "further attention within a frame, which image models lack"
    MLP = "the MLP"
    SHIFT = "nothing, since it shifts tokens and has no parameters"
    NEW = "nothing, since no known weights have such a sublayer"


ADDED = (Role.TIME, Role.EXTRA)  # roles of attention that image models lack
ATTENTION = (Role.IMAGE, *ADDED)


class Coverage(NamedTuple):
    """Which patches the queries of a scheme attend to.

    Attributes:
        attended_per_position: the sorted distinct values of: the number of frames in which a query attends to a given
            (y, x). (1,) for attention within a frame, (t,) for joint attention over t frames. Empty if, for some query,
            this number is not the same at all (y, x), or is 0.
        crosses_frames: whether some query attends to a patch of another frame.
    """

    attended_per_position: tuple[int, ...]
    crosses_frames: bool


def coverage(scheme: Scheme, grid: tuple[int, int, int]) -> Coverage:
    """Computes the coverage of a scheme on a grid of patches (t, y, x) from `scheme.visible`."""
    positions = Position(*(axis.ravel() for axis in np.indices(grid)))
    patches, is_uniform, crosses_frames = len(positions.t), True, False
    key, attended_per_position = Position(*(axis[None] for axis in positions)), set()
    queries_at_once = max(1, _PAIRS_AT_ONCE // patches)
    for start in range(0, patches, queries_at_once):
        query = Position(*(axis[start : start + queries_at_once, None] for axis in positions))
        visible = np.broadcast_to(scheme.visible(query, key), (len(query.t), patches))
        counts = visible.reshape(len(visible), grid[0], -1).sum(axis=1)  # (queries, patches of a frame)
        is_uniform = is_uniform and bool((counts == counts[:, :1]).all() and counts.all())
        attended_per_position |= set(counts[:, 0].tolist())
        crosses_frames = crosses_frames or bool((visible & (query.t != key.t)).any())
    return Coverage(tuple(sorted(attended_per_position)) if is_uniform else (), crosses_frames)


@singledispatch
def sublayer_role(sublayer) -> Role:
    """Returns the role of a sublayer, judging by its class alone.

    All self-attention gets IMAGE. `block_roles` then distinguishes IMAGE, TIME and EXTRA.

    Raises:
        ConfigError: a sublayer of an unknown class.
    """
    raise ConfigError(
        f"the model has a {type(sublayer).__name__}, for which "
        "vidformers.pretrained.roles.sublayer_role registers no role"
    )


@sublayer_role.register
def _(sublayer: SelfAttention) -> Role:
    return Role.IMAGE


@sublayer_role.register
def _(sublayer: Mlp) -> Role:
    return Role.MLP


@sublayer_role.register
def _(sublayer: TokenShift) -> Role:
    return Role.SHIFT


@sublayer_role.register
def _(sublayer: ClassAttention) -> Role:
    return Role.NEW


def block_roles(sublayers, grid: tuple[int, int, int]) -> list[Role]:
    """Returns the role of each sublayer of a block.

    At most one attention gets the role IMAGE. Its queries must attend to all spatial positions equally often, that
    is, its `Coverage.attended_per_position` is not empty. Of several, the one with the fewest keys is chosen, and among
    equals the first: the attention of an image model has one key per position, so attention with few keys is closest to
    it. All other attention gets TIME or EXTRA. In a block without self-attention, such as class attention and its MLP,
    all sublayers with parameters get NEW.

    Args:
        sublayers: the sublayers of one block.
        grid: the grid of patches, (t, y, x).
    """
    roles = [sublayer_role(sublayer) for sublayer in sublayers]
    attentions = [i for i, role in enumerate(roles) if role is Role.IMAGE]
    if not attentions:
        return [role if role is Role.SHIFT else Role.NEW for role in roles]
    # On a single frame, attention over time cannot be distinguished from attention within a frame.
    grid = (max(grid[0], 2), *grid[1:])
    coverages = {i: coverage(sublayers[i].scheme, grid) for i in attentions}
    for i in attentions:
        roles[i] = Role.TIME if coverages[i].crosses_frames else Role.EXTRA
    covering = [i for i in attentions if coverages[i].attended_per_position]
    if covering:  # the largest of `attended_per_position` is proportional to the number of keys
        roles[min(covering, key=lambda i: (coverages[i].attended_per_position[-1], i))] = Role.IMAGE
    return roles


@singledispatch
def patch_encoder(encoder, path=("encoder",)):
    """Returns (path, encoder) of the encoder that embeds patches. A `FramewiseEncoder` is unwrapped."""
    return path, encoder


@patch_encoder.register
def _(encoder: FramewiseEncoder, path=("encoder",)):
    return patch_encoder(encoder.encoder, (*path, "encoder"))

"""The role of every sublayer of a block when weights are loaded, decided from what its attention sees.

A block of an image model has one attention, in which every query reads each patch of the frame once, and one MLP. A
block of a video model can have more sublayers. No scheme is known here by its class: `Scheme.visible` decides.
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
    """What a sublayer takes from the weights of a block."""

    IMAGE = "the attention within a frame"
    TIME = "attention over time, which image models lack"
    EXTRA = "further attention within a frame, which image models lack"
    MLP = "the MLP"
    SHIFT = "nothing, since it shifts tokens and has no parameters"
    NEW = "nothing, since no known weights have such a sublayer"


ADDED = (Role.TIME, Role.EXTRA)  # attention that image models lack
ATTENTION = (Role.IMAGE, *ADDED)


class Coverage(NamedTuple):
    """How the queries of a scheme read the patches of a frame.

    Attributes:
        times: how many times a query reads each patch of a frame, counted over all frames. Sorted, one entry for each
            number that occurs. Empty if some query reads some patches more often than others, or reads no patch.
        crosses_frames: whether some query reads a patch of another frame.
    """

    times: tuple[int, ...]
    crosses_frames: bool


def coverage(scheme: Scheme, grid: tuple[int, int, int]) -> Coverage:
    """Computes the coverage of a scheme on a grid of patches (t, y, x) from `scheme.visible`."""
    places = Position(*(axis.ravel() for axis in np.indices(grid)))
    patches, even, crosses = len(places.t), True, False
    key, times = Position(*(axis[None] for axis in places)), set()
    rows = max(1, _PAIRS_AT_ONCE // patches)
    for start in range(0, patches, rows):
        query = Position(*(axis[start : start + rows, None] for axis in places))
        visible = np.broadcast_to(scheme.visible(query, key), (len(query.t), patches))
        counts = visible.reshape(len(visible), grid[0], -1).sum(axis=1)  # (queries, patches of a frame)
        even = even and bool((counts == counts[:, :1]).all() and counts.all())
        times |= set(counts[:, 0].tolist())
        crosses = crosses or bool((visible & (query.t != key.t)).any())
    return Coverage(tuple(sorted(times)) if even else (), crosses)


@singledispatch
def kind(sublayer) -> Role:
    """Returns the role of a sublayer by itself. For all self-attention that is IMAGE, see `block_roles`.

    Raises:
        ConfigError: a sublayer of an unknown class.
    """
    raise ConfigError(
        f"the model has a {type(sublayer).__name__}, for which vidformers.pretrained.roles.kind registers no role"
    )


@kind.register
def _(sublayer: SelfAttention) -> Role:
    return Role.IMAGE


@kind.register
def _(sublayer: Mlp) -> Role:
    return Role.MLP


@kind.register
def _(sublayer: TokenShift) -> Role:
    return Role.SHIFT


@kind.register
def _(sublayer: ClassAttention) -> Role:
    return Role.NEW


def block_roles(sublayers, grid: tuple[int, int, int]) -> list[Role]:
    """Returns the role of each sublayer of a block.

    One attention plays the part of the image model's attention. Every query of that attention reads each patch of a
    frame equally often. If several do so, the one with the fewest keys plays the part, of equal ones the first. All
    other attention is attention that image models lack. A block without self-attention, such as class attention and
    its MLP, is new as a whole.

    Args:
        sublayers: of one block.
        grid: of the patches, (t, y, x).
    """
    roles = [kind(sublayer) for sublayer in sublayers]
    attentions = [i for i, role in enumerate(roles) if role is Role.IMAGE]
    if not attentions:
        return [role if role is Role.SHIFT else Role.NEW for role in roles]
    # On a single frame, attention over time could not be told from attention within a frame.
    grid = (max(grid[0], 2), *grid[1:])
    coverages = {i: coverage(sublayers[i].scheme, grid) for i in attentions}
    for i in attentions:
        roles[i] = Role.TIME if coverages[i].crosses_frames else Role.EXTRA
    covering = [i for i in attentions if coverages[i].times]
    if covering:
        roles[min(covering, key=lambda i: (coverages[i].times[-1], i))] = Role.IMAGE
    return roles


@singledispatch
def patch_encoder(encoder, path=("encoder",)):
    """Returns (path, encoder) of the encoder of patches. It is within the encoder of a model that runs it by frames."""
    return path, encoder


@patch_encoder.register
def _(encoder: FramewiseEncoder, path=("encoder",)):
    return patch_encoder(encoder.encoder, (*path, "encoder"))

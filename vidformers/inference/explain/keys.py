"""The keys that one query attends to, in every attention of a model: MEViT's Figure 1 for any scheme.

The keys follow from the definition of each attention: `Scheme.visible` and the partition into groups, the windows of
Swin, the levels of STAT and the window of VTN. Neither parameters nor a video are needed.

A new scheme of `SelfAttention` needs no change here. A new class of sublayer is registered with `visible_keys`.
"""

import dataclasses
import math
from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.groups import group_numbers
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.scheme import Position, Scheme
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.errors import ConfigError, require
from vidformers.inference.explain.passes import RecordingPass
from vidformers.layers.convolution import mean_pool
from vidformers.parallel.target import traced_for

Place = tuple[int, int, int]


class Layout(NamedTuple):
    """The tokens that enter an attention sublayer: the grid (t, y, x) of patches, and the number of class tokens."""

    grid: Place
    class_tokens: int


class Level(NamedTuple):
    """Keys on one grid.

    Attributes:
        shares: (t y' x'), the share of the heads in which the query attends to each key.
        side: the side of the square of patches for which a key stands. 1: a key is a patch.
    """

    shares: np.ndarray
    side: int = 1


class Keys(NamedTuple):
    """The keys of one query.

    Attributes:
        attention: the name of the attention with its options.
        layout: the tokens that enter it.
        query: (t, y, x), in cells of `query_side`, or None if only class tokens are queries.
        levels: the keys that stand for patches, by name, such as 'patches'.
        class_tokens: (c), the share of the heads in which the query attends to each class token.
        class_name: what `class_tokens` are.
        query_side: the side of the square of patches for which the query stands.
        entries: the number of entries of the dictionary.
    """

    attention: str
    layout: Layout
    query: Place | None
    levels: dict[str, Level]
    class_tokens: np.ndarray
    class_name: str = "class tokens"
    query_side: int = 1
    entries: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The number of keys of each kind, in any head, without the kinds that have none."""
        counts = {name: np.count_nonzero(level.shares) for name, level in self.levels.items()}
        counts |= {self.class_name: np.count_nonzero(self.class_tokens), "dictionary entries": self.entries}
        return {name: int(count) for name, count in counts.items() if count}

    @property
    def differs_by_head(self) -> bool:
        """Whether some key is read by some heads only."""
        shares = [self.class_tokens, *(level.shares for level in self.levels.values())]
        return any(((share > 0) & (share < 1)).any() for share in shares)


@singledispatch
def visible_keys(sublayer, layout: Layout, query: Place) -> Keys:
    """Returns the keys that a query attends to.

    Args:
        sublayer: an attention sublayer. Its parameters are not used.
        layout: the tokens that enter it.
        query: (t, y, x), a patch of `layout.grid`. Where queries are pooled, the pooled query that covers the patch.
    Raises:
        ConfigError: the class of the sublayer is not registered.
    """
    raise ConfigError(
        f"--keys does not support the attention {type(sublayer).__name__}. Register it with `visible_keys` in "
        f"{__name__}."
    )


@visible_keys.register
def _(sublayer: SelfAttention, layout, query):
    scheme = sublayer.scheme
    shares, class_shares = _scheme_shares(scheme, layout, query, sublayer.heads, sublayer.class_keys)
    levels = {"patches": Level(shares)}
    name = str(scheme) if dataclasses.is_dataclass(scheme) else type(scheme).__name__
    return Keys(name, layout, query, levels, class_shares, entries=_entries(sublayer))


def _scheme_shares(scheme: Scheme, layout: Layout, query: Place, heads: int, class_keys: bool):
    """Returns the shares of the heads in which a query attends to the patches (t y x) and to the class tokens (c)."""
    grid, size = layout.grid, math.prod(layout.grid)
    class_rows = int(class_keys and layout.class_tokens > 0)
    number = np.asarray(group_numbers(scheme, grid))  # (1 g m): patches are 1, 2, ..., and padding is 0
    groups, patches = number.shape[1:]
    group = (number == 1 + np.ravel_multi_index(query, grid)).any(axis=2).argmax()
    # The class tokens of the groups are size + 1, size + 2, .... If there is only one, it is in every group.
    owners = size + 1 + np.arange(groups) * (layout.class_tokens == groups)
    numbers = np.concatenate([number, np.repeat(owners[None, :, None], class_rows, axis=2)], axis=2)
    by_head = jnp.broadcast_to(numbers[..., None, None], (*numbers.shape, heads, 1))
    places = Position(*(axis.reshape(1, -1) for axis in np.indices(grid)))
    visible = np.asarray(scheme.visible(Position(*(np.full((1, 1), i) for i in query)), places))[0]
    seen = np.zeros((1 + size + layout.class_tokens, heads), bool)
    for letter in "KV":  # a scheme may take heads or tokens of keys and values from neighbouring frames
        moved = scheme.shift_in_time(by_head, letter, class_rows)[..., 0]
        on_grid = np.asarray(scheme.unfold(moved[:, :, :patches], grid)).reshape(size, heads)
        keys = np.concatenate([on_grid[visible], np.asarray(moved)[0, group, patches:]])
        seen[keys, np.arange(heads)] = True
    shares = seen[1:].mean(axis=1)  # without row 0: padding, and the zeros beyond the ends of the clip
    return shares[:size].reshape(grid), shares[size:]


@visible_keys.register
def _(sublayer: ClassAttention, layout, query):
    name = "ClassAttention of the class token"
    return Keys(name, layout, None, {"patches": Level(np.ones(layout.grid))}, np.zeros(layout.class_tokens))


@visible_keys.register
def _(sublayer: ConvolutionalAttention, layout, query):
    t, y, x = layout.grid
    # The schemes compare frames alone, so the frame stands for t, y and x alike, as in the masked form.
    frames = np.arange(max(t, layout.class_tokens))  # class token i belongs to frame i, or to the clip
    visible = np.asarray(
        sublayer.scheme.visible(Position(*[frames[query[0], None]] * 3), Position(*[frames] * 3)), float
    )
    shares = np.broadcast_to(visible[:t, None, None], (t, -(-y // sublayer.stride), -(-x // sublayer.stride)))
    return Keys(
        f"ConvolutionalAttention of {sublayer.scheme}, keys of stride {sublayer.stride}",
        layout,
        query,
        {"convolved patches": Level(shares, sublayer.stride)},
        visible[: layout.class_tokens],
        entries=_entries(sublayer),
    )


@visible_keys.register
def _(sublayer: ShiftedWindowAttention, layout, query):
    index = sublayer.window_index(layout.grid)
    return Keys(
        f"ShiftedWindowAttention(window={sublayer.window}, shifted={sublayer.shifted})",
        layout,
        query,
        {"patches": Level((index == index[query]).astype(float))},
        np.zeros(layout.class_tokens),
        entries=_entries(sublayer),
    )


@visible_keys.register
def _(sublayer: ShrinkingAttention, layout, query):
    (t, y, x), stride = layout.grid, sublayer.kv_stride
    levels, class_tokens, query_side = {}, np.zeros(t), 1 if sublayer.pool_q is None else 2
    empty = jnp.zeros((2, 1, t, y, x, 1)), jnp.zeros((2, 1, t, 1))
    for tokens, offsets in sublayer.levels(*empty, lambda patches: mean_pool(patches, stride)):
        if offsets is None:  # one token of every frame
            class_tokens[:] = 1
            continue
        name, side = ("pooled patches", stride) if offsets == [0] else ("averages of near frames", 2 * stride)
        shares = np.isin(np.arange(t) - query[0], offsets)[:, None, None] * np.ones((-(-y // side), -(-x // side)))
        assert shares[0].size == tokens.shape[3]
        levels[name] = Level(shares, side)
    return Keys(
        f"ShrinkingAttention(window={2 * sublayer.radius + 1}, kv_stride={stride}, long_key={sublayer.long_key!r})",
        layout,
        (query[0], query[1] // query_side, query[2] // query_side),
        levels,
        class_tokens,
        "means of frames" if sublayer.long_key == "mean" else "class tokens",
        query_side=query_side,
        entries=_entries(sublayer),
    )


@visible_keys.register
def _(sublayer: LongformerAttention, layout, query):
    distance = np.abs(np.arange(layout.grid[0]) - query[0])
    return Keys(
        f"LongformerAttention(window={2 * sublayer.half_window})",
        layout,
        query,
        {"frames": Level((distance <= sublayer.half_window).astype(float)[:, None, None])},
        np.ones(1),
        entries=_entries(sublayer),
    )


def _entries(sublayer) -> int:
    return 0 if sublayer.dictionary is None else sublayer.dictionary.keys.shape[0]


class _LayoutPass(RecordingPass):
    """A pass through one layer of every stage that notes its attention sublayers.

    Attributes:
        attentions: (number of the first block, number of blocks, sublayer, layout) in the order of the pass.
    """

    reads_means_of_frames = True

    def __init__(self):
        super().__init__()
        self.attentions, self.count = [], 0

    def stage(self, stage, tokens):
        make_block, parameters, shared = stage.split_blocks()
        block = make_block(jax.tree.map(lambda leaf: leaf[0], parameters), shared)
        return self._block(block, stage.depth, tokens)

    temporal_stage = stage

    def blocks(self, blocks, tokens):
        for block in blocks:
            tokens = self._block(nnx.merge(*nnx.split(block)), 1, tokens)
        return tokens

    def _block(self, block, depth, tokens):
        for sublayer in block.sublayers:
            if hasattr(sublayer, "kernel"):
                self.attentions.append((self.count + 1, depth, sublayer, _layout(tokens)))
            tokens = sublayer(tokens)
        self.count += depth
        return tokens


def _layout(tokens) -> Layout:
    if isinstance(tokens, FrameSequence):
        return Layout((tokens.tokens.shape[1] - 1, 1, 1), 1)
    return Layout(tokens.grid, tokens.class_tokens.shape[1])


def model_keys(make_model, query: Place | None = None) -> list[tuple[str, Keys]]:
    """Returns the keys of a query in each kind of attention of a model, each after a text such as 'Blocks 1-4, 7'.

    Blocks are counted from 1 in the order of the forward pass, those of a readout included. Nothing is computed.

    Args:
        make_model: function of `rngs` that builds the model.
        query: (t, y, x), a patch on the grid of the embedding, counted from 0. None is the patch in the middle. Where
            a stage has a coarser grid, the query is the patch that covers it. Where frames are encoded one by one, the
            grid is one frame.
    Raises:
        ConfigError: the query is not on the grid, or an attention is not registered with `visible_keys`.
    """
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    layouts = _LayoutPass()
    video = jax.ShapeDtypeStruct((1, *model.shape), jnp.uint8)
    with traced_for("cpu"):
        jax.eval_shape(lambda state, video: layouts(nnx.merge(graph, state), video), state, video)
        grid = layouts.grid
        query = tuple(n // 2 for n in grid) if query is None else query
        require(
            len(query) == 3 and all(0 <= i < n for i, n in zip(query, grid, strict=True)),
            f"--query={','.join(map(str, query))} is not a patch of the model. Give frame, row and column, counted "
            f"from 0, on the grid {' x '.join(map(str, grid))}.",
        )
        found: dict[tuple[str, Layout], tuple[set[int], Keys]] = {}
        for first, depth, sublayer, layout in layouts.attentions:
            place = tuple(i * m // n for i, n, m in zip(query, grid, layout.grid, strict=True))
            keys = visible_keys(sublayer, layout, place)
            blocks, _ = found.setdefault((keys.attention, layout), (set(), keys))
            blocks.update(range(first, first + depth))
    return [(_blocks(blocks), keys) for blocks, keys in found.values()]


def _blocks(numbers: set[int]) -> str:
    """Returns the numbers of blocks as text such as 'Blocks 1-4, 7'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"Block{'s' * (len(numbers) > 1)} {text}"

"""Draws the keys of a query: one row for each attention, one square for each frame."""

import numpy as np

from input_pipeline.figures import drawn_texts
from vidformers.inference.explain.keys import Keys
from vidformers.inference.explain.pictures import encode_figure

_DPI = 100
_MAX_WIDTH, _SIDES = 1500, (16, 150)  # in pixels: of the frames of a row; the smallest and largest side of a frame
_GAP, _SLOT, _ABOVE, _MARGIN, _HEAD, _FOOT = 6, 11, 14, 12, 26, 30
_GREY, _QUERY, _KEY = (232, 232, 232), (31, 90, 200), (242, 133, 28)  # of patches, the query and a key, in RGB
_LEAST = 0.35  # the strength of the colour of a key that only one of many heads reads


def draw_keys(rows: list[tuple[str, Keys]]) -> bytes:
    """Returns a PNG file with one row for each attention.

    A row shows the frames from left to right, with their numbers from 0 on. The query is blue and its keys are orange.
    They are paler where only some heads read a key. A key that stands for several patches is one large cell. Class
    tokens are small squares: one above each frame, or one to the left of the frames. The title of a row counts the
    keys.

    Args:
        rows: a text that says where the attention occurs, and the keys, as `keys.model_keys` returns them.
    """
    texts = [f"{place}: {_title(keys)}" if place else _title(keys) for place, keys in rows]
    with drawn_texts(texts) as texts:
        return encode_figure(_figure([keys for _, keys in rows], texts), _DPI)


def _figure(rows: list[Keys], texts: list[str]):
    """Returns the figure of `draw_keys`. `texts` are the titles of the rows."""
    from matplotlib.figure import Figure

    strips = [_strip(keys) for keys in rows]
    across = 2 * _MARGIN + max(600, *(strip.shape[1] for strip in strips))
    down = sum(strip.shape[0] + _HEAD for strip in strips) + _FOOT + _MARGIN
    figure = Figure(figsize=(across / _DPI, down / _DPI), dpi=_DPI)
    top = _MARGIN
    for text, keys, strip in zip(texts, rows, strips, strict=True):
        figure.text(_MARGIN / across, 1 - top / down, text, va="top", size=8)
        top += _HEAD - 8
        for t, left in enumerate(_lefts(keys)):
            if _side(keys) >= 24:
                at = (_MARGIN + left + _side(keys)) / across, 1 - (top + 1) / down
                figure.text(*at, str(t), va="top", ha="right", size=6, color="grey")
        figure.figimage(strip, _MARGIN, down - top - strip.shape[0], origin="upper")
        top += strip.shape[0] + 8
    handles, names = _legend(rows)
    figure.legend(handles, names, loc="lower left", ncols=len(names), fontsize=8, frameon=False)
    return figure


def _title(keys: Keys) -> str:
    grid = " x ".join(map(str, keys.layout.grid))
    counts = ", ".join(f"{count:,} {name[:-1] if count == 1 else name}" for name, count in keys.counts.items())
    return f"{keys.attention} on a grid of {grid}. Keys: {counts}{', in any head' if keys.differs_by_head else ''}"


def _legend(rows: list[Keys]):
    """Returns the handles and names of the colours that occur."""
    from matplotlib.patches import Patch

    squares = " or ".join(dict.fromkeys(keys.class_name for keys in rows if keys.layout.class_tokens))
    entries = [
        (_QUERY, "query", True),
        (_KEY, "key", True),
        (_mix(_LEAST), "key of some heads", any(keys.differs_by_head for keys in rows)),
        (_GREY, "not a key" + (f"; small squares outside of the frames are {squares}" if squares else ""), True),
    ]
    entries = [(colour, name) for colour, name, occurs in entries if occurs]
    return [Patch(color=np.divide(colour, 255)) for colour, _ in entries], [name for _, name in entries]


def _mix(share: float) -> np.ndarray:
    """Returns the colour of a key that this share of the heads reads, and that of other patches for a share of 0."""
    strength = 0 if share == 0 else _LEAST + (1 - _LEAST) * share
    return np.round((1 - strength) * np.array(_GREY) + strength * np.array(_KEY)).astype(np.uint8)


def _side(keys: Keys) -> int:
    """Returns the side of a frame in pixels, a multiple of the number of its rows if they are not too many."""
    frames, rows, _ = keys.layout.grid
    side = int(np.clip(_MAX_WIDTH // frames - _GAP, *_SIDES))
    return max(side // rows, 1) * rows if rows <= _SIDES[1] else side


def _has_slot_before(keys: Keys) -> bool:
    """Whether class tokens belong to the clip, and are drawn to the left of its frames."""
    return keys.layout.class_tokens not in (0, keys.layout.grid[0])


def _lefts(keys: Keys) -> list[int]:
    """Returns the left edge of each frame in pixels."""
    start = (_SLOT + _GAP) * _has_slot_before(keys)
    return [start + t * (_side(keys) + _GAP) for t in range(keys.layout.grid[0])]


def _strip(keys: Keys) -> np.ndarray:
    """Returns the frames of one row below a margin for their numbers and class tokens, uint8 (y x 3)."""
    side, lefts = _side(keys), _lefts(keys)
    strip = np.full((_ABOVE + side, lefts[-1] + side, 3), 255, np.uint8)
    for t, left in enumerate(lefts):
        strip[_ABOVE:, left : left + side] = _frame(keys, t, side)
    for i, share in enumerate(keys.class_tokens):
        top, left = (_ABOVE + i * (_SLOT + 3), 0) if _has_slot_before(keys) else (0, lefts[i])
        strip[top : top + _SLOT, left : left + _SLOT] = _QUERY if keys.query is None else _mix(share)
    return strip


def _frame(keys: Keys, t: int, side: int) -> np.ndarray:
    """Returns frame t of the grid, uint8 (side side 3)."""
    _, rows, columns = keys.layout.grid
    image = np.full((side, side, 3), 255, np.uint8)

    def fill(y, x, cell, colour, inset=0):
        """Fills the square of `cell` x `cell` patches that starts at a patch, and leaves a white line at its end."""
        (top, bottom), (left, right) = (
            [round(min(edge, n) * side / n) for edge in (i * cell, (i + 1) * cell)]
            for i, n in ((y, rows), (x, columns))
        )
        line = 1 if bottom - top > 3 else 0
        image[top + inset : bottom - line - inset, left + inset : right - line - inset] = colour

    for place in np.ndindex(rows, columns):
        fill(*place, 1, _GREY)
    for level in keys.levels.values():
        for y, x in np.argwhere(level.shares[t]):
            fill(y, x, level.side, _mix(level.shares[t, y, x]))
    if keys.query is not None and keys.query[0] == t:
        cell = keys.query_side * side // rows
        fill(*keys.query[1:], keys.query_side, _QUERY, inset=cell // 5 if cell > 9 else 0)
    return image

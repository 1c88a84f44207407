"""Values that no reader expects, drawn by rule, and trees of values in which some are replaced by such."""

import copy
import json
import math
import random
from typing import Any

_NUMBERS = (0, 1, 255, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1)
_TEXTS = (
    "",
    "None",
    "-1",
    "\0",
    "\ud800",
    "\x1b[2J",
    "$_{x",
    "[red]",
    "../../etc/passwd",
    "/dev/zero",
    "NaN",
    "é" * 300,
)
_CONTAINERS = (list, dict)


def ill_number(rng: random.Random) -> int:
    """Returns a number at the end of a range, or one of many digits."""
    number = rng.choice((*_NUMBERS, 10 ** rng.randrange(1, 400)))
    return rng.choice((1, 1, -1)) * number


def ill_value(rng: random.Random, depth: int = 2) -> Any:
    """Returns a JSON value of a random kind and size."""
    kind = rng.randrange(9)
    if kind < 2:
        return ill_number(rng)
    if kind == 2:
        return rng.choice((None, True, False, math.nan, math.inf, -1.5, 1e308, 5e-324))
    if kind == 3:
        return rng.choice(_TEXTS)
    if kind == 4:
        return rng.choice("a0[{") * rng.choice((300, 10_000, 1_000_000))
    if kind == 5:
        return nested(rng, rng.choice((10, 90, 101, 400)))
    if kind == 6:
        return [rng.choice((0, "a", None))] * rng.choice((0, 1, 3, 100_000))
    if not depth:
        return {}
    values = [ill_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return values if kind == 7 else {str(number): value for number, value in enumerate(values)}


def nested(rng: random.Random, depth: int) -> Any:
    """Returns lists and dictionaries within each other."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def change_tree(tree: Any, rng: random.Random, ill=ill_value) -> Any:
    """Returns the tree of lists and dictionaries with one to three values replaced, removed, moved or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randrange(1, 4)):
        places = list(_places(tree))
        if not places:
            return ill(rng)
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, place = rng.choice(places)
            parent[key] = copy.deepcopy(other[place]) if place in _keys(other) else None
        elif kind == 2 and isinstance(parent, dict):
            parent[rng.choice(_TEXTS)] = parent.pop(key)
        else:
            parent[key] = ill(rng)
    return tree


def _keys(container):
    return container if isinstance(container, dict) else range(len(container))


def _places(tree):
    """Yields (container, key) of all values in a tree."""
    if isinstance(tree, _CONTAINERS):
        for key in list(_keys(tree)):
            yield tree, key
            yield from _places(tree[key])


def ill_text(content: bytes, rng: random.Random) -> bytes:
    """Returns a JSON text with ill values in place of some, or a text that grows when it is read."""
    kind = rng.randrange(8)
    if kind < 5:
        return json.dumps(change_tree(json.loads(content), rng)).encode()
    size = rng.choice((10, 10_000, 1_000_000))
    if kind == 5:  # deeper or wider than a reader can follow
        start, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return start * size + b"0" + (end * size if rng.random() < 0.5 else b"")
    if kind == 6:  # many small values, a number of many digits, or a name of many letters
        return b"[" + rng.choice((b"{},", b"[],", b'"ab",', b"1,", b"9", b"a")) * size + rng.choice((b"0]", b'"]'))
    return rng.choice((b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\x1f\x8b", b"", b"\xed\xa0\x80")) + content

"""The registry of attention schemes, over which tests and the growth benchmark loop.

A scheme registers itself at the end of its file with a small grid on which its groups differ from those of other
schemes, and with the keys of every query written by hand. The tests compare the Jacobian of the gathered form with
these keys. They call neither `fold` nor `unfold`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vidformers.attention.scheme import Scheme

Place = tuple[int, int, int]
Keys = Callable[[Place, int, int, int], Iterable[Place]]


@dataclass(frozen=True)
class SchemeEntry:
    """One row of the registry.

    Attributes:
        name: unique name of the row.
        make: returns an instance of the scheme.
        grid: (t, y, x), the grid of patches on which tests run the instance. `y` equals `x`, because an embedding
            takes square images.
        keys: (grid, t, y, x) -> the places (t, y, x) of all patches whose keys and values the query of the patch at
            (t, y, x) reads, in any of at least 3 heads. Never computed with `fold` or `visible`.
        class_tokens: the class tokens with which the scheme runs: 'none', one a 'clip', or one a 'frame'.
    """

    name: str
    make: Callable[[], Scheme]
    grid: Place
    keys: Keys
    class_tokens: tuple[str, ...]


SCHEMES: dict[str, SchemeEntry] = {}

# Attentions that are not a partition of the grid into groups, and the test that holds each of them instead.
NOT_PARTITIONS = {
    "ClassAttention": "tests/attention/test_attention.py: the class token reads every patch and not itself.",
    "ConvolutionalAttention": "tests/models/test_cvt.py: its gathered form equals its masked form.",
    "LongformerAttention": "tests/attention/test_longformer.py: a query sees exactly its window and the class token.",
    "ShiftedWindowAttention": "tests/models/test_swin.py: its gathered form equals its masked form.",
    "ShrinkingAttention": "tests/attention/test_shrinking.py: its gathered form equals its masked form.",
}


def register(
    name: str,
    make: Callable[[], Scheme],
    *,
    grid: Place,
    keys: Keys,
    class_tokens: tuple[str, ...] = ("none", "clip"),
) -> None:
    """Adds a row to `SCHEMES`; `SchemeEntry` explains the arguments.

    Raises:
        ValueError: the name is registered already.
    """
    if name in SCHEMES:
        raise ValueError(f"The attention scheme {name!r} is registered twice.")
    SCHEMES[name] = SchemeEntry(name, make, grid, keys, class_tokens)


def load_schemes() -> dict[str, SchemeEntry]:
    """Returns `SCHEMES` after importing every module of `vidformers.attention`, so that no row is missing."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return SCHEMES

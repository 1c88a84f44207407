"""The registry of attention schemes. Tests and the growth benchmark loop over it; models do not use it.

A scheme registers itself at the end of its file with a small grid on which its groups differ from those of other
schemes, and with the expected keys of every query. tests/attention/test_registry.py compares the Jacobian of the
gathered form with the expected keys, and calls neither `fold` nor `unfold`. The expected keys stand beside the scheme
and not in the tests, so that a new scheme is a single file.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vidformers.attention.scheme import Scheme

GridPosition = tuple[int, int, int]
ExpectedKeys = Callable[[GridPosition, int, int, int], Iterable[GridPosition]]


@dataclass(frozen=True)
class SchemeEntry:
    """One row of the registry.

    Attributes:
        name: unique name of the row.
        make: returns an instance of the scheme.
        grid: (t, y, x), the grid of patches on which tests run the instance. `y` equals `x`, because an embedding
            takes square images.
        expected_keys: expected_keys(grid, t, y, x) returns the positions (t, y, x) of all patches that the patch at
            (t, y, x) attends to, in any of at least 3 heads. Lists them explicitly, without `fold` and `visible`.
        class_tokens: the numbers of class tokens with which the scheme runs: 'none', 'clip' for one per clip, 'frame'
            for one per frame.
    """

    name: str
    make: Callable[[], Scheme]
    grid: GridPosition
    expected_keys: ExpectedKeys
    class_tokens: tuple[str, ...]


SCHEMES: dict[str, SchemeEntry] = {}

# Attention layers that are not a partition of the grid into groups, and the test that covers each of them instead.
NOT_PARTITIONS = {
    "ClassAttention": "tests/attention/test_attention.py: the class token attends to every patch and not to itself.",
    "ConvolutionalAttention": "tests/models/test_cvt.py: its gathered form equals its masked form.",
    "LongformerAttention": "tests/attention/test_longformer.py: a frame attends to its window and the class token.",
    "ShiftedWindowAttention": "tests/models/test_swin.py: its gathered form equals its masked form.",
    "ShrinkingAttention": "tests/attention/test_shrinking.py: its gathered form equals its masked form.",
}


def register(
    name: str,
    make: Callable[[], Scheme],
    *,
    grid: GridPosition,
    expected_keys: ExpectedKeys,
    class_tokens: tuple[str, ...] = ("none", "clip"),
) -> None:
    """Adds a row to `SCHEMES`, which lists the schemes to test with their expected keys.

    The arguments are the attributes of `SchemeEntry`.

    Raises:
        ValueError: the name is registered already, or the declarations of the scheme contradict each other.
    """
    if name in SCHEMES:
        raise ValueError(f"The attention scheme {name!r} is registered twice.")
    scheme = make()
    if scheme.whole and scheme.reads_neighbours:
        raise ValueError(
            f"The attention scheme {name!r} has reads_neighbours=True, so a query attends to more than its group. Set "
            "whole=False."
        )
    if scheme.causal and class_tokens != ("none",):
        raise ValueError(
            f"The attention scheme {name!r} is causal, so it does not run with class tokens as keys. Register it with "
            "class_tokens=('none',)."
        )
    SCHEMES[name] = SchemeEntry(name, make, grid, expected_keys, class_tokens)


def load_schemes() -> dict[str, SchemeEntry]:
    """Returns `SCHEMES` after importing every module of `vidformers.attention`, so that no row is missing."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return SCHEMES

"""The list of attention schemes, which the tests, the growth benchmark and the exports run over.

A scheme registers itself at the end of its file with a small grid on which its windows bite, and with the keys of each
query written out by hand. The tests compare the Jacobian of the gathered form with these keys and never with `fold`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vidformers.attention.scheme import Scheme

Place = tuple[int, int, int]


@dataclass(frozen=True)
class SchemeEntry:
    """One row of the registry.

    Attributes:
        name: unique.
        make: returns a small instance of the scheme.
        grid: (t, y, x), a grid of patches on which the tests run the instance.
        keys: (grid, t, y, x) -> the places (t, y, x) of the patches that the patch at (t, y, x) reads.
        class_tokens: the class tokens that the scheme needs, 'none' or one a 'frame'.
    """

    name: str
    make: Callable[[], Scheme]
    grid: Place
    keys: Callable[[Place, int, int, int], Iterable[Place]]
    class_tokens: str = "none"


SCHEMES: dict[str, SchemeEntry] = {}


def register(name: str, make: Callable[[], Scheme], *, grid: Place, keys, class_tokens: str = "none") -> None:
    """Adds a row to `SCHEMES`; see `SchemeEntry` for the arguments.

    Raises:
        ValueError: the name is registered already.
    """
    if name in SCHEMES:
        raise ValueError(f"The attention scheme {name!r} is registered twice.")
    SCHEMES[name] = SchemeEntry(name, make, grid, keys, class_tokens)

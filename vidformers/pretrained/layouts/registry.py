"""The registry of layouts: how the files of other libraries are recognised and read.

A layout registers itself at the end of its file. Every file of weights must be recognised by at most one layout.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts.structure import ArrayReader, Weights

_DEEPEST_PREFIX = 3  # dots in a prefix; wrappers of training code add no more


@dataclass(frozen=True)
class Layout:
    """One row of the registry.

    Attributes:
        models: the published models that have this layout, for messages.
        read: converts the arrays of a file.
        names: names that every file of this layout has, all behind the same prefix.
        never: a name that no file of this layout has, behind any prefix; '' for none.
    """

    models: str
    read: Callable[[ArrayReader], Weights]
    names: tuple[str, ...]
    never: str = ""

    def prefix(self, arrays) -> str | None:
        """Returns the prefix of the names in a file of this layout, or None if the file has another layout."""
        if self.never and any(name.endswith(self.never) for name in arrays):
            return None
        for name in arrays:
            if name.endswith(self.names[0]):
                prefix = name.removesuffix(self.names[0])
                if prefix.count(".") <= _DEEPEST_PREFIX and all(prefix + other in arrays for other in self.names):
                    return prefix
        return None


LAYOUTS: list[Layout] = []


def register(models: str, read, *names: str, never: str = "") -> None:
    """Adds a row to `LAYOUTS`. The arguments are the fields of `Layout`."""
    LAYOUTS.append(Layout(models, read, names, never))


def read(arrays, metadata=None) -> tuple[Weights, ArrayReader]:
    """Recognises the layout of a file and converts its arrays. The conversion does not change the output of a model.

    Args:
        arrays: name -> array.
        metadata: the content of config.json and preprocessor_config.json beside the file.
    Returns:
        The weights, and the reader, which has recorded the arrays that were read.
    Raises:
        ConfigError: no layout has these names, or an array is missing. The message continues a sentence that starts
            with the path of the file.
    """
    for layout in LAYOUTS:
        if (prefix := layout.prefix(arrays)) is not None:
            reader = ArrayReader(arrays, prefix, metadata or {})
            return layout.read(reader), reader
    first_names = ", ".join(list(arrays)[:3])
    raise ConfigError(
        f"its names ({first_names}, ...) belong to no known layout. Known are: "
        + "; ".join(sorted(layout.models for layout in LAYOUTS))
    )

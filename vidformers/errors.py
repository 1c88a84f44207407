"""The exception for mistakes of the user."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from input_pipeline.errors import DataError
from input_pipeline.fields import annotations, mistakes, shown
from input_pipeline.paths import local_path
from input_pipeline.text import enumeration


class ConfigError(ValueError):
    """Raised when a setting or a file cannot work.

    The message names the field or file, and says why it cannot work and what to do. Commands print it on one line.
    """


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_types(section: str, values: Mapping[str, Any], function: Callable) -> None:
    """Raises ConfigError if a value does not fit the annotation of its field, see `input_pipeline.fields.mistakes`.

    Args:
        section: the section of the config, as messages name it.
        values: the fields with their values.
        function: a dataclass with these fields, or a function with these arguments.
    """
    for field, expected in mistakes(values, annotations(function)).items():
        raise ConfigError(f"{section}.{field}={shown(values[field])} must be {expected}.")


def require_path(name: str, path) -> str:
    """Returns a path of the local file system. Raises ConfigError as `input_pipeline.paths.local_path` DataError."""
    try:
        return local_path(name, os.fspath(path))
    except DataError as error:
        raise ConfigError(str(error)) from None


def divisors_near(number: int, value: int) -> str:
    """Returns the divisors of `number` that are nearest to `value`, up to four, as '8, 14, 16 or 28'."""
    lower = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*lower, *(number // n for n in lower)}
    return enumeration([str(n) for n in sorted(sorted(divisors, key=lambda n: abs(n - value))[:4])], "or")


def multiples_near(unit: int, value: int) -> str:
    """Returns the multiples of `unit` around `value`, such as '16 or 24'."""
    below = value // unit * unit
    return enumeration([str(n) for n in (below, below + unit) if n > 0], "or")


def require_range(field: str, value, least, most) -> None:
    """Raises ConfigError unless `value` is from `least` to `most`."""
    require(least <= value <= most, f"{field}={value} must be from {least} to {most:,}.")

"""The types of the fields of a config: whether a value is one that the annotation of its field allows."""

import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_MAX_INTEGER = 2**31 - 1  # JAX counts in int32
_MAX_SHOWN = 60  # characters of a value in a message
_MAX_TEXT = 4096  # characters


def annotations(function: Callable) -> dict[str, Any]:
    """Returns the annotation of each field of a dataclass, or of each argument of a function."""
    return typing.get_type_hints(function)


def mistakes(values: Mapping[str, Any], annotations: Mapping[str, Any]) -> dict[str, str]:
    """Returns what each value that does not fit its annotation must be, {field: 'an integer'}.

    A number must be finite, an integer must fit in 32 bits, and text must not be empty. A list counts as
    a tuple, since JSON has no tuples.
    """
    return {
        field: _expected(annotations[field])
        for field, value in values.items()
        if field in annotations and not _fits(value, annotations[field])
    }


def shown(value) -> str:
    """Returns a value as a message shows it, without the middle of a long one."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 2]}...{text[-_MAX_SHOWN // 2 :]}"


def _fits(value, annotation) -> bool:
    alternatives = _alternatives(annotation)
    if len(alternatives) > 1:
        return any(_fits(value, alternative) for alternative in alternatives)
    if annotation is types.NoneType:
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return is_integer and abs(value) <= _MAX_INTEGER
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if annotation is str:
        return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and "\0" not in value
    if tuple in (annotation, typing.get_origin(annotation)):
        return isinstance(value, (tuple, list)) and _elements_fit(value, typing.get_args(annotation))
    return True


def _is_finite(number) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the largest float
        return False


def _elements_fit(values, kinds: tuple) -> bool:
    if not kinds:  # a bare `tuple`
        return True
    if kinds[-1] is Ellipsis:
        return all(_fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _alternatives(annotation) -> tuple:
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


_WORDS = {
    types.NoneType: "none",
    bool: "true or false",
    int: f"an integer up to {_MAX_INTEGER:,}",
    float: "a finite number",
    str: "text that is not empty",
    tuple: "a tuple",
}


def _expected(annotation) -> str:
    """Returns what a value must be, in words."""
    alternatives = _alternatives(annotation)
    if len(alternatives) > 1:
        return " or ".join(map(_expected, alternatives))
    if annotation in _WORDS:
        return _WORDS[annotation]
    kinds = typing.get_args(annotation)
    if kinds[-1] is Ellipsis:
        return f"a tuple, each element {_expected(kinds[0])}"
    return f"a tuple of {len(kinds)}: {', '.join(map(_expected, kinds))}"

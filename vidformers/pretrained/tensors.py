"""Tensors of PyTorch as descriptions: views into storages, which are rows of numbers in a file."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_AXES = 16
_MOST_NUMBERS = 2**40  # in a tensor, and in each of its axes
_LONGEST_TEXT = 255


class Malformed(ValueError):
    """The content of a file is invalid. The text says why."""


@dataclass(frozen=True, slots=True)
class Inert:
    """Replaces an object that is not needed. It accepts every operation of a pickle, and does nothing."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A row of `count` numbers in the file."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view into a storage. It is checked to lie within the storage, whatever made it.

    Attributes:
        storage: the storage.
        dtype: the type of the numbers. It differs from that of the storage if the storage holds bytes.
        offset: the first number.
        shape, strides: tuples of equal length. The strides are in numbers.
    Raises:
        Malformed: the view does not lie within the storage.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        if not isinstance(self.storage, Storage):
            raise Malformed("a tensor has no storage")
        if type(self.shape) is not tuple or type(self.strides) is not tuple or len(self.shape) != len(self.strides):
            raise Malformed("the shape and the strides of a tensor are not tuples of equal length")
        if len(self.shape) > _MOST_AXES:
            raise Malformed(f"a tensor has {len(self.shape)} axes, and at most {_MOST_AXES} are read")
        for number in (self.offset, *self.shape, *self.strides):
            if type(number) is not int or not 0 <= number <= _MOST_NUMBERS:
                raise Malformed(f"a number of a tensor is {shown(number)}")
        count = math.prod(self.shape)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if count > self._held or (count and last >= self._held) or self.offset > self._held:
            raise Malformed(f"a tensor of shape {self.shape} does not lie within its storage of {self._held} numbers")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def _held(self) -> int:
        """The numbers of the tensor's type that the storage holds."""
        return self.storage.nbytes // self.dtype.itemsize

    def array(self, stored: bytes) -> np.ndarray:
        """Returns the tensor as a read-only array. A contiguous tensor shares its memory with `stored`.

        Args:
            stored: the bytes of the storage.
        Raises:
            ValueError: there are too few bytes, or the shape is one that NumPy does not have.
        """
        flat = np.frombuffer(stored, self.dtype, self._held)[self.offset :]
        if 0 in self.shape:
            return flat[:0].reshape(self.shape)
        # The stride of an axis of length 1 has no meaning, and may be any number.
        strides = [
            stride * self.dtype.itemsize if size > 1 else 0
            for size, stride in zip(self.shape, self.strides, strict=True)
        ]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return view if view.flags.c_contiguous else view.copy()


def described(value: Any) -> str:
    """Returns the kind of a value of a pickle."""
    return value.name if isinstance(value, Inert) else f"a {type(value).__name__.lstrip('_').lower()}"


def shown(value: Any) -> str:
    """Returns a number or a text of a pickle as it is written, or the kind of another value. The length is bounded."""
    if value is None or type(value) in (bool, float) or type(value) is int and abs(value) < 2**64:
        return repr(value)
    if type(value) is str:
        return repr(value if len(value) <= _LONGEST_TEXT else f"{value[:_LONGEST_TEXT]}...")
    return described(value)

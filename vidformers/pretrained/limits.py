"""What a file of weights may hold. Reading a file that holds more could fill the memory or take hours."""

MEBIBYTE = 2**20
MOST_ARRAYS = 10_000  # the largest models that are loaded here have about 1,000
LONGEST_NAME = 500  # characters of the name of an array
_FREE_BYTES = 128 * MEBIBYTE


class TooMuch(ValueError):
    """A file holds more than it may. The text says what."""


def most_bytes(file_bytes: int, per_byte: int = 2) -> int:
    """Returns how many bytes the arrays of a file may take in memory.

    Assigning arrays to parameters takes several times their size. Compressed weights are hardly smaller than their
    arrays.

    Args:
        file_bytes: the size of the file.
        per_byte: bytes of arrays for each byte of a large file.
    """
    return max(_FREE_BYTES, per_byte * file_bytes)


def check_bytes(nbytes: int, file_bytes: int, per_byte: int = 2) -> None:
    """Raises `TooMuch` if arrays of `nbytes` take more than `most_bytes`."""
    if nbytes > most_bytes(file_bytes, per_byte):
        raise TooMuch(
            f"its {file_bytes} bytes would become arrays of {nbytes} bytes, and at most "
            f"{most_bytes(file_bytes, per_byte)} are read"
        )


def check_count(count: int) -> None:
    """Raises `TooMuch` if a file has more than `MOST_ARRAYS` arrays."""
    if count > MOST_ARRAYS:
        raise TooMuch(f"it holds {count} arrays, and at most {MOST_ARRAYS} are read")

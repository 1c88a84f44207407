"""Opens zip archives of weights: npz files and files of torch.save. Their directory is checked first."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from vidformers.pretrained.damage import DAMAGE_ERRORS
from vidformers.pretrained.limits import MEBIBYTE, MOST_ARRAYS, check_bytes

_LARGEST_DIRECTORY = 16 * MEBIBYTE
_MOST_ENTRIES = 4 * MOST_ARRAYS  # torch.save and numpy.savez write little besides arrays
_ENCRYPTED = 0x1 | 0x40  # flags of an entry


class BadArchive(ValueError):
    """The archive is damaged, or is none of weights. The text says why."""


class _Directory:
    """A file of which zipfile may read no large piece while it reads the directory of the archive."""

    def __init__(self, file):
        self._file = file
        self.most_bytes: int | None = _LARGEST_DIRECTORY

    def read(self, count: int = -1) -> bytes:
        if self.most_bytes is not None and count > self.most_bytes:
            raise BadArchive(f"its directory has {count} bytes, and at most {self.most_bytes} are read")
        return self._file.read(count)

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextmanager
def open_archive(file, compression: tuple[int, ...]) -> Iterator[zipfile.ZipFile]:
    """Opens an archive whose entries have plausible sizes.

    Args:
        file: a binary file, open for reading.
        compression: the methods of compression that entries may have.
    Raises:
        BadArchive: the archive is damaged, or has encrypted, overlapping or too many entries, two entries of a name, or
            other compression.
        TooMuch: unpacked, the entries would be much larger than the file.
    """
    size = os.fstat(file.fileno()).st_size
    directory = _Directory(file)
    try:
        archive = zipfile.ZipFile(directory)  # type: ignore[arg-type]
    except BadArchive:
        raise
    except (OSError, *DAMAGE_ERRORS) as error:
        raise BadArchive(f"its directory is damaged ({type(error).__name__}: {error})") from None
    with archive:
        directory.most_bytes = None
        _check_entries(archive.infolist(), size, compression)
        yield archive


def _check_entries(entries, size, compression):
    if len(entries) > _MOST_ENTRIES:
        raise BadArchive(f"it has {len(entries)} entries, and at most {_MOST_ENTRIES} are read")
    if len({entry.filename for entry in entries}) < len(entries):
        raise BadArchive("two of its entries have the same name")
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise BadArchive(f"its entry {entry.filename[:100]!r} is encrypted")
        if entry.compress_type not in compression:
            stored = compression == (zipfile.ZIP_STORED,)
            raise BadArchive(
                "its entries are compressed, and those of torch.save never are"
                if stored
                else f"its entry {entry.filename[:100]!r} is compressed by a method that NumPy never uses"
            )
        if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
            raise BadArchive(f"its entry {entry.filename[:100]!r} has two sizes")
    if sum(entry.compress_size for entry in entries) > size:
        raise BadArchive("its entries are larger than the file, or overlap")
    check_bytes(sum(entry.file_size for entry in entries), size)

"""Zip archives of arrays, valid and hostile."""

import io
import random
import struct
import zipfile

import numpy as np

from benchmarks.campaign import damage
from benchmarks.campaign.ill_values import ill_number

_TYPES = ("<f4", "<f2", "|O", "<c8", "|V2", "<U100000", "|S0", "(1000000,1000000)f4", "f4,f4", "<i8", ">f4", "nonsense")
_NAMES = ("/etc/passwd", "../../a.npy", "a\0b.npy", "é.npy", "a" * 60_000, "x/data.pkl", ".npy", "a/")


def ill_npy(rng: random.Random) -> bytes:
    """Returns an array in the format of NumPy whose header and numbers do not belong to each other."""
    kind = rng.randrange(6)
    shape = tuple(rng.choice((0, 1, 2, 2**31, ill_number(rng))) for _ in range(rng.choice((0, 1, 2, 40))))
    header = repr({"descr": rng.choice(_TYPES), "fortran_order": rng.random() < 0.5, "shape": shape})
    if kind == 0:
        header = rng.choice("([{-") * rng.choice((50, 900, 9000)) + "1"
    elif kind == 1:
        header = header.replace("'shape'", rng.choice(("'shape', 'more'", "'form'", "shape")))
    text = header.encode() + b" " * rng.choice((0, 10, 100_000)) + b"\n"
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = rng.choice((len(text), len(text), len(text), ill_number(rng)))
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes((version, 0)) + (length % 256**width).to_bytes(width, "little") + text + bytes(16)


def packed(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression, compresslevel=1) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Returns an array in the format of NumPy."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    return content.getvalue()


def ill_archive(valid: bytes, rng: random.Random) -> bytes:
    """Returns the archive with changed entries, or with a directory that does not describe them."""
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    kind, name = rng.randrange(8), rng.choice(list(entries))
    if kind == 0:
        return packed(entries, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    if kind == 1:
        entries[rng.choice(_NAMES)] = entries.pop(name)
    elif kind == 2:
        entries[name] = rng.choice(damage.KINDS)(entries[name], rng)
    elif kind == 3:
        return _bomb(entries, name, rng)
    elif kind == 4:
        entries |= {f"{name}{i}": b"" for i in range(rng.choice((10, 50_000)))}
    elif kind == 5:
        entries[name] = valid
    else:
        return _with_ill_directory(packed(entries), rng)
    return packed(entries)


def _bomb(entries, name, rng):
    """Returns an archive of which one array of zeros is much larger than the file."""
    size, content = rng.choice((2**20, 2**28, 2**30)), io.BytesIO()
    suffix = name if name.endswith(".npy") else "x.npy"
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, data in entries.items():
            if other != suffix:
                archive.writestr(zipfile.ZipInfo(other), data)
        bomb = zipfile.ZipInfo(suffix)
        bomb.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(bomb, "w", force_zip64=True) as file:
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)})
            file.write(head.getvalue())
            for _ in range(size >> 20):
                file.write(bytes(2**20))
    return content.getvalue()


def _with_ill_directory(content, rng):
    """Returns the archive whose directory has one to three changed fields, or lists its entries again and again."""
    start = content.rfind(b"PK\5\6")
    (first,) = struct.unpack_from("<I", content, start + 16)
    directory, end = bytearray(content[first:start]), bytearray(content[start:])
    places = [place for place in range(len(directory) - 46) if directory[place : place + 4] == b"PK\1\2"]
    for _ in range(rng.randrange(1, 4)):
        if rng.random() < 0.2:  # counts and sizes of the directory itself
            struct.pack_into("<I", end, rng.choice((8, 12, 16)), abs(ill_number(rng)) % 2**32)
        # versions, flags, compression, checksum, both sizes, lengths, or the place of an entry
        place, (offset, width) = (
            rng.choice(places),
            rng.choice(((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
        )
        number = rng.choice((abs(ill_number(rng)), 1, 0x41, 8, 12, 14, 99)) % 256**width
        directory[place + offset : place + offset + width] = number.to_bytes(width, "little")
    if rng.random() < 0.3:
        directory *= rng.choice((2, 1000))
        struct.pack_into("<HHI", end, 8, 0xFFFF, 0xFFFF, len(directory) % 2**32)
    return content[:first] + bytes(directory) + bytes(end)

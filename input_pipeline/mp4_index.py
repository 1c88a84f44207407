"""The index of an MP4 file, before FFmpeg reads it.

If all samples (frames, or pieces of sound) have one size, an MP4 file states only their size and their number. FFmpeg
trusts the number and makes an index entry for each: a file of a few kilobytes can ask for gigabytes.
"""

import struct
from typing import BinaryIO

_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # the boxes around the sample sizes, ISO 14496-12
_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # boxes that an MP4 or MOV file begins with
_MAX_BOXES = 10_000  # that are looked at, so that a damaged file takes no time
_SOUND_COMPRESSION = 64  # more than the codecs of such files reach


def claimed_bytes(file: BinaryIO, size: int) -> int:
    """Returns how many bytes the samples of one track occupy at least, by the claim of the file, or 0 if unknown.

    Args:
        file: an open file of any format.
        size: its size in bytes.
    """
    file.seek(0)
    if file.read(8)[4:] not in _FIRST:
        return 0
    largest, ranges, is_video = 0, [(0, size)], False
    for _ in range(_MAX_BOXES):
        if not ranges:
            break
        start, end = ranges.pop()
        if start + 8 > end:  # also where a size of 64 bits is too large to seek
            continue
        file.seek(start)
        head = file.read(20)
        if len(head) < 20:
            continue
        length, kind = struct.unpack_from(">I4s", head)
        payload = start + (16 if length == 1 else 8)
        stop = end if length == 0 else start + (int.from_bytes(head[8:16]) if length == 1 else length)
        if stop < payload:
            continue
        ranges.append((stop, end))
        if kind in _PARENTS:
            ranges.append((payload, min(stop, end)))
        elif kind == b"hdlr" and head[12:16] != b"dhlr":  # the kind of the track, not of its storage
            is_video = head[16:] == b"vide"
        elif kind == b"stsz":  # the version, the size of each sample or 0, and their number
            each, count = struct.unpack_from(">II", head, 12)
            # Tracks of compressed sound in old files count the bytes before compression.
            largest = max(largest, each * count // (1 if is_video else _SOUND_COMPRESSION))
    return largest

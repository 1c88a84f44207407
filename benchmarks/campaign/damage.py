"""Damage to files, drawn at random."""

import random


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with one bit flipped."""
    if not content:
        return b"\0"
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """Returns the start of the content, which may be empty."""
    return content[: rng.randrange(max(len(content), 1))]


def flip_many(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with 2 to 64 bits flipped."""
    for _ in range(rng.randrange(2, 65)):
        content = flip_bit(content, rng)
    return content


def flip_in_head(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with up to 16 bits flipped in its first 512 bytes, where headers are."""
    head = content[:512]
    for _ in range(rng.randrange(1, 17)):
        head = flip_bit(head, rng)
    return head + content[512:]


def hole(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with a part of it set to zero."""
    start, length = rng.randrange(max(len(content), 1)), rng.randrange(1, 20_000)
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def remove_part(content: bytes, rng: random.Random) -> bytes:
    """Returns the content without a part of it."""
    start, length = rng.randrange(max(len(content), 1)), rng.randrange(1, 20_000)
    return content[:start] + content[start + length :]


def repeat_part(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with a part of it inserted a second time somewhere else."""
    start, length, place = rng.randrange(len(content) + 1), rng.randrange(1, 20_000), rng.randrange(len(content) + 1)
    return content[:place] + content[start : start + length] + content[place:]


def large_number(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with four bytes set to a number that is large or negative, as of a size or a count."""
    place = rng.randrange(max(len(content) - 4, 1))
    number = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0"))
    return content[:place] + number + content[place + 4 :]


KINDS = (flip_bit, truncate, flip_many, flip_in_head, hole, remove_part, repeat_part, large_number)

"""Pickles of torch.save, valid and hostile, put together from opcodes."""

import pickle
import pickletools
import random
import struct

from benchmarks.campaign.ill_values import ill_number

_OPCODES = {opcode.name: opcode for opcode in pickletools.opcodes}
_GLOBALS = (
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_qtensor",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch ComplexFloatStorage",
    "torch Size",
    "torch float8_e4m3fn",
    "torch.storage UntypedStorage",
    "torch.storage _load_from_bytes",
    "collections OrderedDict",
    "collections Counter",
    "collections defaultdict",
    "builtins getattr",
    "builtins eval",
    "posix system",
    "numpy._core.multiarray _reconstruct",
    "vidformers.errors require",
    "copyreg _reconstructor",
)
_FOOTER = b"."


def value(content) -> bytes:
    """Returns the opcodes that push a plain value."""
    return pickle.dumps(content, 2)[2:-1]


def find(name: str) -> bytes:
    """Returns the opcode that pushes a global."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def tensor(key="0", count=4, offset=0, shape=(2, 2), strides=(2, 1), storage="torch FloatStorage") -> bytes:
    """Returns the opcodes that push a tensor."""
    kind = b"(" + value("storage") + find(storage) + value(key) + value("cpu") + value(count) + b"tQ"
    rest = value(offset) + value(shape) + value(strides) + b"\x89" + find("collections OrderedDict") + b")R"
    return find("torch._utils _rebuild_tensor_v2") + b"(" + kind + rest + b"tR"


def state_dict(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Returns the pickle of a state dict. Its tensors are contiguous, and the storage of each has its number as key."""
    items = b""
    for number, (name, shape) in enumerate(shapes.items()):
        strides, count = [], 1
        for size in reversed(shape):
            strides.insert(0, count)
            count *= size
        items += value(name) + tensor(str(number), count, 0, shape, tuple(strides))
    return b"\x80\x02" + find("collections OrderedDict") + b")R(" + items + b"u."


def ill_pickle(valid: bytes, rng: random.Random) -> bytes:
    """Returns a hostile pickle: a valid one with changed opcodes, or one put together by a grammar."""
    kind = rng.randrange(4)
    if kind == 0:
        return _changed(valid, rng)
    if kind == 1:
        return b"\x80\x02}" + value("weight") + _ill_tensor(rng) + b"s" + _FOOTER
    return b"\x80\x04" + (_growing(rng) if kind == 2 else _random(rng)) + _FOOTER


def _changed(valid, rng):
    """Returns the pickle with some opcodes removed, repeated, moved or replaced."""
    places = [place for _, _, place in pickletools.genops(valid)]
    pieces = [valid[start:end] for start, end in zip(places, [*places[1:], len(valid)], strict=True)]
    for _ in range(rng.randrange(1, 5)):
        place, kind = rng.randrange(len(pieces)), rng.randrange(5)
        if kind == 0:
            del pieces[place]
        elif kind == 1:
            pieces[place : place + 1] *= rng.choice((2, 2, 100, 100_000))
        elif kind == 2:
            pieces.insert(rng.randrange(len(pieces)), pieces[place])
        elif kind == 3:
            pieces[place] = _any_opcode(rng)
        else:
            pieces.insert(place, value(ill_number(rng)))
        if not pieces:
            break
    return b"".join(pieces)


def _ill_tensor(rng):
    """Returns the opcodes of a tensor whose numbers do not belong to each other."""
    axes = rng.randrange(5)

    def number():
        return rng.choice((0, 1, 2, 4, 4, 2**40, 2**61, ill_number(rng)))

    shape = tuple(number() for _ in range(axes))
    strides = tuple(number() for _ in range(rng.choice((axes, axes, rng.randrange(40)))))
    made = tensor("0", number(), number(), shape, strides, rng.choice(_GLOBALS[5:12]))
    if rng.random() < 0.5:  # a state that replaces the checked numbers
        made += value({"shape": (2**40,), "strides": (ill_number(rng),), "offset": ill_number(rng)}) + b"b"
    if rng.random() < 0.2:
        made = find("torch._utils _rebuild_parameter") + b"(" + made + b"tR"
    return made


def _growing(rng):
    """Returns opcodes that make something of exponential size, if an opcode may double what it takes."""
    count = rng.choice((30, 60, 5000, 200_000))
    kind = rng.randrange(7)
    if kind == 0:  # tuples of tuples, as the key of a dictionary, as a member of a set, or as a number in a message
        deep = b")" + b"2\x86" * count
        return rng.choice((b"}" + deep + b"Ns", b"\x8f(" + deep + b"\x90", _tensor_of(deep), deep))
    if kind == 1:  # lists in lists
        return b"]" * count + b"a" * rng.choice((0, count - 1))
    if kind == 2:  # dictionaries that copy themselves
        copied = find(rng.choice(_GLOBALS[12:15]))
        return b"}(" + b"".join(value(str(i)) + b"N" for i in range(2000)) + b"u\x940" + (copied + b"h\0\x85R") * count
    if kind == 3:  # names of names
        name = value("a" * rng.choice((10, 10_000, 1_000_000)))
        return name + b"\x94" + (b"h\0" + b"\x93") * min(count, 100)
    if kind == 4:  # dictionaries that hold the same dictionary many times
        level = b"".join(value(str(i)) + b"h\0" for i in range(1000))
        return b"}\x940" + b"".join(b"}(" + level + b"u\x940" for _ in range(3)) + b"h" + bytes([rng.randrange(4)])
    if kind == 5:  # a place in the memo that does not fit into the memory
        return b"}r" + struct.pack("<I", rng.choice((2**31 - 1, 2**32 - 1)))
    length = rng.choice((2**31 - 1, 2**20))  # a number, a text or bytes of this declared length
    return rng.choice((b"\x8b", b"X", b"B", b"\x8d", b"\x8e", b"\x96")) + struct.pack("<Q", length) + bytes(100)


def _tensor_of(opcodes):
    return find("torch._utils _rebuild_tensor_v2") + b"(NK\0" + opcodes + b")tR"


def _random(rng):
    """Returns opcodes drawn at random, most of which find what they need on the stack."""
    program = b"}" + value("a")
    for _ in range(rng.choice((10, 100, 3000))):
        program += rng.choice((_any_opcode, _pushing, _pushing))(rng)
    return program


def _pushing(rng):
    return rng.choice(
        (
            find(rng.choice(_GLOBALS)),
            value(ill_number(rng)),
            value(rng.choice(("a", "", "0", "storage"))),
            b"(",
            b")",
            b"]",
            b"}",
            b"\x8f",
            tensor(),
            b"N)\x86",
        )
    )


def _any_opcode(rng):
    """Returns an opcode with an argument of its form and any value."""
    opcode = _OPCODES[rng.choice(sorted(_OPCODES))]
    code = opcode.code.encode("latin-1")
    if opcode.arg is None:
        return code
    if opcode.arg.n >= 0:
        return code + rng.choice((rng.randbytes(opcode.arg.n), b"\0" * opcode.arg.n, b"\xff" * opcode.arg.n))
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return code + rng.choice((b"1", b"a", b"'a'", b"9" * 5000, b"", b"torch\nSize")) + b"\n"
    text = rng.randbytes(rng.randrange(4))
    width = {-2: 1, -3: 4, -4: 4, -5: 8}[opcode.arg.n]
    return code + rng.choice((len(text), 2 ** (8 * width) - 1)).to_bytes(width, "little") + text

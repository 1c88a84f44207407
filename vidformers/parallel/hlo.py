"""Reads the text of a compiled program (HLO): its computations, instructions, shapes and source locations."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

DTYPE_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32,
    "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]*)\)")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_LOOP = re.compile(r"(condition|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCH_LIST = re.compile(r"branch_computations=\{([^}]*)\}")
_INDEX = re.compile(r"index=(\d+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")


class Array(NamedTuple):
    """One array of a shape."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.dimensions) * DTYPE_BITS[self.dtype] // 8

    @property
    def padded_bytes(self) -> int:
        """The bytes in memory, with the padding of the minor axes to whole tiles."""
        tile = _TILE.search(self.layout)
        order = [int(axis) for axis in self.layout.split(":")[0].split(",") if axis]
        if tile is None or not order:
            return self.bytes
        padded = list(self.dimensions)
        for size, axis in zip(reversed(tile.group(1).split(",")), order, strict=False):
            padded[axis] = -(-padded[axis] // int(size)) * int(size)
        return math.prod(padded) * DTYPE_BITS[self.dtype] // 8

    @property
    def in_device_memory(self) -> bool:
        """Whether the array lies in the large memory of the device and not in one on the core, such as VMEM."""
        space = _MEMORY_SPACE.search(self.layout)
        return space is None or space.group(1) == "0"


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of the text of a shape: one, or those of a tuple in order. Tokens are left out."""
    found = (
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    return [array for array in found if array.dtype in DTYPE_BITS]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        name: its name, unique in the program.
        shape: the text of the shape of its result.
        opcode: such as 'fusion', 'copy' or 'all-gather-start'.
        argument: the text between the parentheses: the operands, or the value of a constant.
        attributes: the text after the parentheses.
        is_root: whether its result is that of the computation.
    """

    name: str
    shape: str
    opcode: str
    argument: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return _NAME.findall(self.argument)

    @property
    def called(self) -> str | None:
        """The computation of a fusion, a call or an asynchronous operation, or the one that a reduction applies."""
        found = _CALLED.search(self.attributes)
        return found.group(1) if found else None

    @property
    def op_name(self) -> str:
        """The name that JAX gave the operation: transformations, scopes and the primitive, divided by slashes."""
        found = _OP_NAME.search(self.attributes)
        return found.group(1) if found else ""

    @property
    def frame(self) -> int:
        """The number of its entry in `Program.frames`, 0 without one."""
        found = _FRAME.search(self.attributes)
        return int(found.group(1)) if found else 0


class Frame(NamedTuple):
    """One entry of a stack trace."""

    file: str
    function: str
    line: int
    parent: int  # the number of the calling frame, 0 without one


class Program:
    """A compiled program.

    Attributes:
        computations: {name: {name of an instruction: instruction}}.
        entry: the name of the computation that runs first.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        header, body = [], {}
        for line in text.splitlines():
            if line[:1] == " ":
                instruction = _read_instruction(line)
                if instruction is not None:
                    body[instruction.name] = instruction
            elif line.endswith("{") and (found := _COMPUTATION.match(line)):
                body = self.computations.setdefault(found.group(2), {})
                self.entry = found.group(2) if found.group(1) else self.entry
            else:
                header.append(line)
        self._header = header

    @cached_property
    def frames(self) -> dict[int, Frame]:
        """The stack frames by their number, from the tables at the head of the text."""
        tables: dict[str, dict[int, str]] = {}
        rows: dict[int, str] = {}
        for line in self._header:
            number, _, value = line.partition(" ")
            if number.isdigit():
                rows[int(number)] = value
            elif line:
                rows = tables.setdefault(line, {})
        files, functions = tables.get("FileNames", {}), tables.get("FunctionNames", {})
        locations = {key: _fields(value) for key, value in tables.get("FileLocations", {}).items()}
        frames = {}
        offset = None
        for key, value in tables.get("StackFrames", {}).items():
            frame = _fields(value)
            if offset is None:  # The first frame has no parent. XLA (jaxlib 0.10) prints numbers of parents plus one.
                offset = frame["parent_frame_id"]
            location = locations[frame["file_location_id"]]
            file, function = files[location["file_name_id"]], functions[location["function_name_id"]]
            frames[key] = Frame(
                file.strip('"'), function.strip('"'), location["line"], frame["parent_frame_id"] - offset
            )
        return frames

    def stack(self, number: int) -> Iterator[Frame]:
        """Yields the frames of a stack trace, the innermost first."""
        while number in self.frames:
            frame = self.frames[number]
            yield frame
            # Callers stand before what they call. Otherwise the table is of an unknown form, and might be circular.
            number = frame.parent if frame.parent < number else 0

    def runs(self) -> list[tuple[str, int]]:
        """Returns (computation, number of its runs in one run of the program), without those within fusions.

        The body of a loop runs once for each iteration, or once if the text does not give the number of iterations. Of
        a conditional, every branch is counted.
        """
        found = []

        def visit(name: str, times: int) -> None:
            found.append((name, times))
            for instruction in self.computations[name].values():
                attributes = instruction.attributes
                if instruction.opcode == "while":
                    visit(dict(_LOOP.findall(attributes))["body"], times * self._iterations(attributes))
                elif instruction.opcode == "conditional":
                    names = _BRANCHES.findall(attributes) + [
                        name.strip(" %") for names in _BRANCH_LIST.findall(attributes) for name in names.split(",")
                    ]
                    for branch in names:
                        visit(branch, times)
                elif instruction.opcode in ("call", "async-start") and instruction.called:
                    visit(instruction.called, times)

        visit(self.entry, 1)
        return found

    def _iterations(self, attributes: str) -> int:
        """Returns the iterations of a loop: as stated, or by the constant with which its condition compares a counter.

        The counter starts at 0. XLA unrolls products that it computes in a ring over devices, and counts by 2 there.
        """
        if stated := _TRIP_COUNT.search(attributes):
            return int(stated.group(1))
        condition, body = (self.computations[dict(_LOOP.findall(attributes))[name]] for name in ("condition", "body"))
        limit = max(filter(None, map(_number, condition.values())), default=1)
        indices = [_INDEX.search(each.attributes) for each in condition.values() if each.opcode == "get-tuple-element"]
        if len(indices) != 1 or indices[0] is None:
            return limit
        root = next(each for each in body.values() if each.is_root)
        counter = body.get(root.operands[int(indices[0].group(1))]) if root.opcode == "tuple" else None
        steps = [_number(body[name]) for name in counter.operands if name in body] if counter else []
        step = max(filter(None, steps), default=1) if counter and counter.opcode == "add" else 1
        return -(-limit // step)

    def opcodes(self, name: str | None) -> set[str]:
        """Returns the opcodes in a computation and in the fusions within it."""
        found: set[str] = set()
        for instruction in self.computations.get(name or "", {}).values():
            found.add(instruction.opcode)
            if instruction.opcode == "fusion":
                found |= self.opcodes(instruction.called)
        return found


def _number(instruction: Instruction) -> int | None:
    """Returns the value of a constant that is a natural number."""
    is_number = instruction.opcode == "constant" and instruction.argument.isdigit()
    return int(instruction.argument) if is_number else None


def _read_instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    opcode = _OPCODE.search(line, head.end() - 1) if head else None
    if head is None or opcode is None:
        return None
    # An operand may be written with its shape, whose layout has parentheses too.
    end, depth = opcode.end(), 1
    while depth and end < len(line):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    shape = line[head.end() : opcode.start()]
    return Instruction(
        head.group(2), shape, opcode.group(1), line[opcode.end() : end - 1], line[end:], bool(head.group(1))
    )


def _fields(text: str) -> dict[str, int]:
    """Returns the fields of '{a=1 b=2}'."""
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}

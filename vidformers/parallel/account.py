"""What a compiled program costs, by its compiler's own account: estimated cycles, collectives, bytes of the buffers.

Nothing is run. The TPU compiler writes an estimate of cycles beside most operations of the scheduled program. Loops are
multiplied out: an operation in the body of a loop counts once for each iteration.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vidformers.parallel.hlo import Instruction, Program, arrays

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "async-start", "async-update", "add-dependency", "opt-barrier",
}  # fmt: skip
_MOVES = {"copy", "transpose", "reshape", "convert", "slice", "dynamic-slice", "concatenate", "pad", "broadcast",
          "reverse"}  # fmt: skip
_NO_WORK = {"parameter", "bitcast", "tuple", "constant", "get-tuple-element", "fusion"}
_SLICES = ("dynamic-slice", "slice", "gather", "dynamic-update-slice")  # they read a part of their first operand
_BOOKKEEPING = ("AllocateBuffer", "ConcatBitcast", "Sharding")  # custom calls that compute nothing
_KERNEL = "tpu_custom_call"  # the target of Pallas kernels on TPUs
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_RESHAPE_CYCLES = re.compile(r'"integer_config":\{"integer":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_WRAPPER = re.compile(r"^(?:transpose|jvp|vmap|remat|checkpoint|custom_vjp|custom_jvp)\((.*)\)$")
_STRUCTURE = {"", "while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "remat"}
_PACKAGE = "/vidformers/"
_SEARCH_DEPTH = 8  # operands to follow from an operation without metadata
_SMALL = 64 * 2**10  # bytes; an operation of fewer bytes without an estimate is not listed


class Operation(NamedTuple):
    """One operation of the program, over all its runs.

    Attributes:
        name: the name of the instruction.
        kind: 'product', 'reduction', 'stack' (of the results of a scan), 'copy', 'asynchronous copy', 'elementwise',
            'kernel' (of Pallas), 'custom call NAME', a collective, or an opcode such as 'reshape'.
        times: how often it runs in one run of the program.
        cycles: estimated cycles of all runs, or None if the compiler gives no estimate.
        bytes: bytes of its operands and results in device memory, of all runs.
        shape: the text of the shape of its result.
        sublayer: the names of `jax.named_scope`, and the class that the block calls. Outside of blocks, the innermost
            class or function of the library.
        source: file, line and function of the library.
    """

    name: str
    kind: str
    times: int
    cycles: int | None
    bytes: int
    shape: str
    sublayer: str
    source: str


class Account(NamedTuple):
    """The operations of a program and its collectives.

    Attributes:
        operations: all operations that take time, in the order of the program.
        exchanges: {kind of collective: {"count": calls, "bytes": bytes of their results on one device}}.
    """

    operations: list[Operation]
    exchanges: dict[str, dict[str, int]]

    @property
    def cycles(self) -> int:
        """The sum of the estimates. Operations without one count nothing."""
        return sum(operation.cycles or 0 for operation in self.operations)

    @property
    def unestimated(self) -> list[Operation]:
        """The operations without an estimate, the largest first.

        Left out are collectives, which are in `exchanges`, asynchronous copies, which run beside other operations, and
        operations of less than 64 KiB.
        """
        found = [
            operation
            for operation in self.operations
            if operation.cycles is None
            and operation.kind not in (*COLLECTIVES, "asynchronous copy")
            and (operation.bytes / operation.times >= _SMALL or operation.kind.startswith(("kernel", "custom call")))
        ]
        return sorted(found, key=lambda operation: -operation.bytes)

    def cycles_by(self, key: Callable[[Operation], str]) -> dict[str, int]:
        """Returns the estimated cycles by `key(operation)`, the largest first."""
        total: dict[str, int] = defaultdict(int)
        for operation in self.operations:
            total[key(operation)] += operation.cycles or 0
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def largest(self, count: int) -> list[Operation]:
        """Returns the `count` operations with most estimated cycles."""
        return sorted(self.operations, key=lambda operation: -(operation.cycles or 0))[:count]


def account(text: str) -> Account:
    """Returns the account of a compiled program, given `compiled.as_text()`."""
    program = Program(text)
    operations = []
    for name, times in program.runs():
        computation = program.computations[name]
        for instruction in computation.values():
            if _takes_time(instruction):
                operations.append(_operation(program, computation, instruction, times))
    return Account(operations, _exchanges(program))


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of a compiled program, given `compiled.as_text()`.

    Returns:
        {kind: {"count": calls in one run of the program, "bytes": sum over their results on one device}}.
    """
    return _exchanges(Program(text))


def argument_bytes(text: str) -> dict[str, int]:
    """Returns the bytes on one device of the arguments of a compiled program, with the padding of their layouts.

    Returns:
        {name of an array by JAX, such as "state.parameters['head']['bias']": bytes}.
    """
    program = Program(text)
    sizes: dict[str, int] = defaultdict(int)
    for instruction in program.computations[program.entry].values():
        if instruction.opcode == "parameter":
            name = instruction.op_name.replace("\\'", "'")
            sizes[name] += sum(array.padded_bytes for array in arrays(instruction.shape))
    return dict(sizes)


def buffer_bytes(folder: str | Path) -> int:
    """Returns the bytes that one device holds, by the buffer assignment that the compiler wrote to `xla_dump_to`.

    On TPUs, `compiled.memory_analysis()` counts temporaries in the memories of the core, too, and so overstates.
    """
    (report,) = Path(folder).glob("*after_optimizations-memory-usage-report.txt")
    found = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", report.read_text(encoding="utf-8"))
    assert found is not None, report
    return int(found.group(1))


def _takes_time(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return False
    return opcode != "custom-call" or not any(name in instruction.attributes for name in _BOOKKEEPING)


def _operation(program: Program, computation: dict, instruction: Instruction, times: int) -> Operation:
    cycles = _estimate(instruction)
    sublayer, source = _origin(program, computation, instruction)
    return Operation(
        name=instruction.name,
        kind=_kind(program, instruction),
        times=times,
        cycles=None if cycles is None else cycles * times,
        bytes=_bytes(program, computation, instruction) * times,
        shape=re.sub(r"\{[^}]*\}", "", instruction.shape),
        sublayer=sublayer,
        source=source,
    )


def _estimate(instruction: Instruction) -> int | None:
    pattern = _RESHAPE_CYCLES if instruction.opcode == "reshape" else _CYCLES
    found = pattern.search(instruction.attributes) or _CYCLES.search(instruction.attributes)
    return int(found.group(1)) if found else None


def _bytes(program: Program, computation: dict, instruction: Instruction) -> int:
    """Returns the bytes of the operands and results in device memory. A copy or a slice counts those that it moves."""
    opcode, shape = instruction.opcode, instruction.shape
    if opcode.endswith("-start"):
        # The shape holds the source, the destination and scalars. The destination is not the larger of the two.
        return min((array.padded_bytes for array in arrays(shape) if array.dimensions), default=0)
    shapes = [computation[name].shape if name in computation else "" for name in instruction.operands]
    if opcode in ("dynamic-slice", "slice"):
        return 2 * _device_bytes(shape)
    if opcode == "dynamic-update-slice":  # in place: the operands are the target, the update and positions
        return 2 * _device_bytes(shapes[1])
    inside = program.computations.get(instruction.called or "", {}) if opcode == "fusion" else {}
    read = sum(_read_bytes(inside, number, operand) for number, operand in enumerate(shapes))
    return read + _written_bytes(inside, shape)


def _device_bytes(shape: str) -> int:
    return sum(array.padded_bytes for array in arrays(shape) if array.in_device_memory)


def _read_bytes(inside: dict, number: int, shape: str) -> int:
    """Returns the bytes that an operation reads of an operand: of a fusion that only slices the operand, the slices.

    Args:
        inside: the fused computation, {} if the operation is no fusion.
        number: the number of the operand.
        shape: the text of the shape of the operand.
    """
    whole = _device_bytes(shape)
    name = next((x.name for x in inside.values() if x.opcode == "parameter" and x.argument == str(number)), None)
    users = [x for x in inside.values() if name in x.operands]
    if not whole or not users or not all(x.opcode in _SLICES and x.operands[0] == name for x in users):
        return whole
    # A fusion that updates a part of the operand in place does not read the operand.
    slices = (x.shape for x in users if x.opcode != "dynamic-update-slice")
    return min(whole, sum(array.padded_bytes for shape in slices for array in arrays(shape)))


def _written_bytes(inside: dict, shape: str) -> int:
    """Returns the bytes that an operation writes: of a fusion that updates an operand in place, those of the update."""
    root = next((x for x in inside.values() if x.is_root), None)
    while root is not None and root.opcode == "bitcast":
        root = inside.get(root.operands[0])
    if root is None or root.opcode != "dynamic-update-slice" or root.operands[1] not in inside:
        return _device_bytes(shape)
    return min(_device_bytes(shape), sum(x.padded_bytes for x in arrays(inside[root.operands[1]].shape)))


def _kind(program: Program, instruction: Instruction) -> str:
    opcode, target = instruction.opcode, _TARGET.search(instruction.attributes)
    base = opcode.removesuffix("-start")
    if base in COLLECTIVES:
        return base
    if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        return "asynchronous copy"
    if opcode == "custom-call":
        name = target.group(1) if target else ""
        if name == _KERNEL:
            return "kernel"
        return "product" if "cublas" in name or "gemm" in name else f"custom call {name}"
    if opcode in ("convolution", "dot"):
        return "product"
    if opcode == "transpose":
        return "copy"
    if opcode != "fusion":
        return opcode
    inner = program.opcodes(instruction.called)
    if inner & {"convolution", "dot"}:
        return "product"
    for kind in COLLECTIVES:
        if kind in inner:
            return kind
    if inner & {"reduce", "reduce-window"}:
        return "reduction"
    work = inner - _NO_WORK
    if "dynamic-update-slice" in work and work - {"dynamic-update-slice"} <= _MOVES | {"select", "compare"}:
        return "stack"
    return "copy" if work <= _MOVES else "elementwise"


def _origin(program: Program, computation: dict, instruction: Instruction) -> tuple[str, str]:
    """Returns the sublayer of an operation, and its file, line and function in the library."""
    labelled = _labelled(program, computation, instruction)
    frames = [frame for frame in program.stack(labelled.frame) if _PACKAGE in frame.file]
    scope = "/".join(_scopes(labelled.op_name))
    if not frames:
        return scope, ""
    source = f"{frames[0].file.rpartition(_PACKAGE)[2]}:{frames[0].line} {frames[0].function}"
    names = [frame.function for frame in frames]
    if "Block.__call__" in names[1:]:
        function = names[names.index("Block.__call__") - 1]
    else:
        function = next((name for name in names if name.endswith(".__call__")), names[0])
    return " ".join(filter(None, (scope, function.removesuffix(".__call__")))), source


def _labelled(program: Program, computation: dict, instruction: Instruction) -> Instruction:
    """Returns the instruction that says where an operation comes from.

    The compiler adds copies and conversions without metadata. They are counted where their operand comes from. A fusion
    without metadata is counted where one of its instructions comes from.
    """
    for _ in range(_SEARCH_DEPTH):
        if instruction.frame:
            return instruction
        if instruction.opcode == "fusion":
            inside = program.computations.get(instruction.called or "", {}).values()
            found = next((inner for inner in inside if inner.frame and inner.opcode not in _NO_WORK), None)
            if found is not None:
                return found
        operand = next((computation[name] for name in instruction.operands if name in computation), None)
        if operand is None:
            break
        instruction = operand
    return instruction


def _scopes(op_name: str) -> Iterator[str]:
    """Yields the names of `jax.named_scope` in the name of an operation. The last part of it is the primitive."""
    for part in op_name.split("/")[:-1]:
        if "jit(" in part:
            continue
        while wrapped := _WRAPPER.match(part):
            part = wrapped.group(1)
        if part not in _STRUCTURE and "." not in part and "(" not in part and not part.startswith("branch_"):
            yield part


def _exchanges(program: Program) -> dict[str, dict[str, int]]:
    counts: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = defaultdict(int)
    for name, times in program.runs():
        for kind, shape in _collectives_in(program, name):
            counts[kind] += times
            sizes[kind] += times * sum(array.bytes for array in arrays(shape))
    return {kind: {"count": counts[kind], "bytes": sizes[kind]} for kind in COLLECTIVES if counts[kind]}


def _collectives_in(program: Program, name: str) -> Iterator[tuple[str, str]]:
    """Yields (kind, shape of the result) of each collective in a computation and in its fusions."""
    computation = program.computations.get(name, {})
    ends = {i.operands[0]: i for i in computation.values() if i.opcode.endswith("-done") and i.operands}
    starts = any("AsyncCollectiveStart" in i.attributes for i in computation.values())
    for instruction in computation.values():
        kind = instruction.opcode.removesuffix("-start")
        called = instruction.called or ""
        if kind in COLLECTIVES:
            # On TPUs, the fusions that run while a collective is under way contain the collective, too. It counts
            # where it starts.
            if starts or "chain_id=" not in instruction.attributes:
                # The shape of a start may hold its operands as well. The shape of the end is the result alone.
                yield kind, ends.get(instruction.name, instruction).shape
        elif instruction.opcode == "fusion" and called.startswith("all-reduce-scatter"):
            yield "reduce-scatter", instruction.shape
        elif instruction.opcode == "fusion":
            yield from _collectives_in(program, called)

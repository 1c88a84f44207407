"""Device memory: how much a compiled step needs, how much there is, and which settings would need less."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that one device holds while a compiled program runs.

    These are the arguments, the results without those that reuse donated arguments, and the temporaries. Returns 0 if
    the backend does not report them.
    """
    stats: Any = compiled.memory_analysis()
    if stats is None:
        return 0
    return (
        stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    )


def shard_bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of one shard of an array. Only its shape, dtype and sharding are used."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def bytes_available() -> float:
    """Returns the memory of one device in bytes.

    A CPU device gets an equal share of the machine's memory. If a device of another kind does not report its memory,
    returns infinity.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats or device.platform != "cpu":
        return stats.get("bytes_limit", math.inf)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error of XLA says that a program, while it compiled or ran, had too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def compile_within(
    limit: float, compile: Callable[[], jax.stages.Compiled]
) -> tuple[jax.stages.Compiled | None, int | None]:
    """Compiles a program that may take at most `limit` bytes of a device.

    Args:
        limit: bytes.
        compile: returns the compiled program.
    Returns:
        The program, None if it does not fit, and the bytes that it needs, None if the compiler ran out of memory before
        it reported them.
    """
    try:
        compiled = compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, None
    needed = program_bytes(compiled)
    return (compiled if needed <= limit else None), needed


def out_of_memory_message(limit: float, needed: int | None, options: Iterable[tuple[str, int]]) -> str:
    """Returns the error message for a training step that does not fit on a device.

    Args:
        limit: the memory of a device in bytes.
        needed: the bytes that the step needs, None if the compiler ran out of memory before it reported them.
        options: pairs (settings, bytes that the step needs with them). The message names the first pair that fits, and
            later pairs are not read, so the iterable may compile lazily.
    """
    problem = shortage("The training step", limit, needed)
    for settings, bytes_needed in options:
        if bytes_needed <= limit:
            return f"{problem} Set {settings}, which needs {_gib(bytes_needed)}."
    return (
        f"{problem} Neither gradient accumulation nor rematerialisation makes it fit: use more devices with mesh.fsdp, "
        "or a smaller model."
    )


def shortage(program: str, limit: float, needed: int | None) -> str:
    """Returns the sentence that a program needs `needed` bytes of a device, which has `limit`, see above."""
    needs = f"{_gib(needed)} per device" if needed is not None else "more memory than a device has"
    return f"{program} needs {needs}, but {_gib(limit)} are available."


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"

"""Whether a compiled step fits on a device, and what would where it does not."""

import math
import os

import jax


def program_bytes(compiled) -> int:
    """Bytes a device must hold while the program runs: arguments, results not aliased to them, temporaries; 0 where the
    compiler does not tell."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    return (
        stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    )


def shard_bytes(leaf) -> int:
    """Bytes of an array, given by shape, type and sharding, on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def bytes_available() -> float:
    """Bytes of a device's memory; on the CPU an equal share of the machine's, and where a device tells none, no end."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats or device.platform != "cpu":
        return stats.get("bytes_limit", math.inf)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def out_of_memory_message(limit: int, have: int | None, options) -> str:
    """One sentence on a step that needs `have` bytes of `limit`.

    `options` yields (what to set, bytes it would need); the first that fits is named, else that none does.
    """
    asks = f"{have / 2**30:.2f} GiB a device" if have is not None else "more memory than a device has"
    for change, bytes_needed in options:
        if bytes_needed <= limit:
            return (
                f"The training step needs {asks} and {limit / 2**30:.2f} GiB are there; with {change} it would "
                f"need {bytes_needed / 2**30:.2f} GiB."
            )
    return (
        f"The training step needs {asks} and {limit / 2**30:.2f} GiB are there; no accumulation or "
        "rematerialisation makes it fit: use more devices with mesh.fsdp, or a smaller model."
    )

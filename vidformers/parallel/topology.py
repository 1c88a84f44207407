"""Described devices: TPU slices and GPU hosts for which programs compile on a machine that has none of them.

The compilers are those of libtpu and of JAX's CUDA plugin. `make ahead` installs both into `.venv-ahead`. Neither needs
a device or a driver.
"""

import fcntl
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from input_pipeline.text import one_line
from vidformers.errors import ConfigError, require


class Chip(NamedTuple):
    """The published figures of one chip.

    Attributes:
        peak: bfloat16 floating-point operations per second.
        bandwidth: bytes per second to and from device memory.
        memory: bytes of device memory that programs can use.
        clock: cycles per second in which the compiler states its estimates, or None if it states none.
    """

    peak: float
    bandwidth: float
    memory: int
    clock: float | None


_GIB = 2**30
CHIPS = {
    "v5e": Chip(197e12, 819e9, int(15.75 * _GIB), 1.5e9),
    "v5p": Chip(459e12, 2765e9, 95 * _GIB, 1.75e9),
    "v6e": Chip(918e12, 1640e9, int(31.25 * _GIB), 1.75e9),
    "h100": Chip(989e12, 3.35e12, 79 * _GIB, None),
}
# libtpu ends the process at a slice of the wrong number of axes.
_SHAPES = {"v5e": r"\d+x\d+", "v5p": r"\d+x\d+x\d+", "v6e": r"\d+x\d+", "h100": r"(\d+x)?\d+"}
TOPOLOGIES = ("v5e:1x1", "v5e:4x4", "v5e:16x16", "v5p:2x2x4", "v6e:4x4", "h100:1", "h100:8", "h100:2x8")

# An H100 SXM as XLA describes it (the text form of its message GpuTargetConfig).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# libtpu reads these variables when it is loaded. With the first it does not search for a TPU. With the second it works
# beside another process that has loaded libtpu. The others silence warnings.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "2",
}
_LOCK = Path(tempfile.gettempdir()) / "vidformers-libtpu.lock"


def chip(topology: str) -> Chip:
    """Returns the chip of a topology, such as that of 'v5e:4x4'.

    Raises:
        ConfigError: the topology is unknown.
    """
    kind, _, shape = topology.partition(":")
    require(
        kind in CHIPS and re.fullmatch(_SHAPES[kind], shape) is not None,
        f"--topology={topology} is unknown. Use one of {', '.join(TOPOLOGIES)}.",
    )
    return CHIPS[kind]


def is_tpu(topology: str) -> bool:
    """Returns whether the chips of a topology are TPUs."""
    return topology.startswith("v")


def check_compiler(topology: str) -> None:
    """Raises ConfigError if the topology is unknown, or if its compiler is not installed."""
    chip(topology)
    module = "libtpu" if is_tpu(topology) else "jax_plugins.xla_cuda12"
    require(
        _is_installed(module),
        f"--topology={topology} needs {'libtpu' if is_tpu(topology) else 'the CUDA plugin of JAX'}, which is not "
        "installed here. Run `make ahead`, then use .venv-ahead/bin/python.",
    )


def devices(topology: str) -> list[jax.Device]:
    """Returns the described devices of a topology, for `parallel.mesh.make_mesh`.

    Programs for them compile but cannot run.

    Raises:
        ConfigError: the topology is unknown, or its compiler is not installed.
    """
    check_compiler(topology)
    kind, _, shape = topology.partition(":")
    try:
        if is_tpu(topology):
            os.environ.update({name: value for name, value in _LIBTPU_ENVIRONMENT.items() if name not in os.environ})
            # By default a host has four chips, so that one chip alone is no topology.
            bounds = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= set("1x") else {}
            return topologies.get_topology_desc(topology, platform="tpu", **bounds).devices
        hosts, _, per_host = shape.rpartition("x")
        slices = f"1x{hosts or 1}x{per_host}"
        return topologies.get_topology_desc(kind, "cuda", target_config=_H100, topology=slices).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology={topology} was refused by its compiler: {one_line(error)}. Use one of {', '.join(TOPOLOGIES)}."
        ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def libtpu_lock() -> Iterator[None]:
    """Holds the lock by which one process at a time compiles with libtpu. Waits for another process, and says so.

    A compilation takes all cores and several GiB of memory.
    """
    with open(_LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another process that compiles with libtpu.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

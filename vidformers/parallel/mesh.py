"""The device mesh and its axes.

- `data`: the rows of a batch are sharded, parameters are replicated.
- `fsdp`: the rows of a batch are sharded, and parameters and optimizer state too (`parallel.state.state_shardings`).
- `context`: the frames of a clip are sharded.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from vidformers.errors import require, require_types

AXES = ("data", "fsdp", "context")
BATCH_AXES = ("data", "fsdp")  # the mesh axes over which the rows of a batch are sharded

Result = TypeVar("Result")


def make_mesh(*, data: int = -1, fsdp: int = 1, context: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of shape (data, fsdp, context).

    Devices along `context` communicate most, so they always belong to one process.

    Args:
        data: devices along `data`; -1 takes all devices that the other axes leave.
        fsdp: devices along `fsdp`.
        context: devices along `context`.
        devices: the devices of the mesh, by default all devices of all processes.
    Raises:
        ConfigError: the product is not the number of devices, or `context` does not divide the devices of a process.
    """
    check_axes(data=data, fsdp=fsdp, context=context)
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    # At least 1, so that the message below says how many devices fsdp x context needs, instead of 0.
    data = max(count // (fsdp * context), 1) if data == -1 else data
    require(
        data * fsdp * context == count,
        f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.context={context} needs {data * fsdp * context} devices, but "
        f"there are {count}. Set mesh.data=-1, and mesh.fsdp and mesh.context to divisors of {count}.",
    )
    local_count = sum(device.process_index == jax.process_index() for device in devices)
    require(
        local_count % context == 0,
        f"mesh.context={context} does not divide the {local_count} devices of a process. Use a divisor of "
        f"{local_count}, so that the frames of a clip stay within a process.",
    )
    axis_types = (AxisType.Auto,) * len(AXES)
    shape = (data, fsdp, context)
    try:
        mesh = jax.make_mesh(shape, AXES, devices=devices, axis_types=axis_types)
    except NotImplementedError:
        # An axis of the mesh is a part of an axis of the TPU slice. jax.make_mesh allows this on TPU v5e alone.
        split = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        mesh = Mesh(split, AXES, axis_types=axis_types)
    if any(len({device.process_index for device in group}) > 1 for group in mesh.devices.reshape(-1, context)):
        # jax.make_mesh optimises for the links between devices, for example on a TPU, and may spread `context` over
        # processes. Sorting by process and id keeps it within one, since `context` divides the devices of a process.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.reshape(devices, shape), AXES, axis_types=axis_types)
    return mesh


def check_axes(*, data: int = -1, fsdp: int = 1, context: int = 1) -> None:
    """Checks the axes of a mesh without its devices; the arguments are those of `make_mesh`.

    Raises:
        ConfigError: an axis is not an integer, or is below 1.
    """
    require_types("mesh", {"data": data, "fsdp": fsdp, "context": context}, check_axes)
    require(
        fsdp >= 1 and context >= 1 and (data == -1 or data >= 1),
        f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.context={context} must be at least 1. Only mesh.data may be -1, "
        "which takes the remaining devices.",
    )


def fits_devices(*, data: int = -1, fsdp: int = 1, context: int = 1) -> bool:
    """Returns whether `make_mesh` can make this mesh of all devices of all processes."""
    count, others = jax.device_count(), fsdp * context
    has_all = count % others == 0 if data == -1 else data * others == count
    return has_all and jax.local_device_count() % context == 0


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards of a batch: the product of `data` and `fsdp`."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def with_mesh(mesh: Mesh, function: Callable[..., Result]) -> Callable[..., Result]:
    """Returns a function that calls `function` with `mesh` as the ambient mesh. JAX then traces it with this mesh.

    The functions of `parallel.activations` read the ambient mesh, so that models do not need it as an argument.
    `jax.set_mesh` cannot be used here, since it is not allowed within `jax.jit`.
    """

    @functools.wraps(function)
    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def current_mesh() -> AbstractMesh | None:
    """Returns the ambient mesh that `with_mesh` has set.

    Returns None where sharding constraints have no effect: without an ambient mesh, on one device, or if the ambient
    mesh was set by other code and has other axes than `AXES`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None

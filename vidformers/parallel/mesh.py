"""The device mesh."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType

from vidformers.errors import require

AXES = ("data", "fsdp", "context")
ROWS = ("data", "fsdp")  # the axes that rows of a batch are spread over


def make_mesh(*, data: int = -1, fsdp: int = 1, context: int = 1, devices=None):
    """A mesh over all devices, or over those given.

    Rows of a batch are spread over `data` and `fsdp`, the frames of each over `context`, parameters and moments over
    `fsdp`. `data=-1` takes what the others leave. Neighbours of `context`, which exchange most, belong to one process.

    Raises:
        ConfigError: the product is not the number of devices, or `context` would reach over hosts.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    require(
        fsdp >= 1 and context >= 1 and (data == -1 or data >= 1),
        f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.context={context} must be at least 1.",
    )
    data = max(count // (fsdp * context), 1) if data == -1 else data
    require(
        data * fsdp * context == count,
        f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.context={context} needs "
        f"{data * fsdp * context} devices; there are {count}.",
    )
    local = sum(device.process_index == jax.process_index() for device in devices)
    require(local % context == 0, f"mesh.context={context} must divide the {local} devices of a process.")
    kind = dict(axis_types=(AxisType.Auto,) * 3)
    mesh = jax.make_mesh((data, fsdp, context), AXES, devices=devices, **kind)
    if any(len({device.process_index for device in group}) > 1 for group in mesh.devices.reshape(-1, context)):
        # Arranged along the links of the machine, as of a TPU, it may reach over hosts; in their order it does not.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = jax.sharding.Mesh(np.reshape(devices, (data, fsdp, context)), AXES, **kind)
    return mesh


def num_batch_shards(mesh) -> int:
    """Parts that the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def with_mesh(mesh, function):
    """`function`, in which `spread` means this mesh."""

    @functools.wraps(function)
    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def current_mesh():
    """The mesh of `make_mesh` that `on` has set; None for one device, or under a mesh of somebody else's."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None

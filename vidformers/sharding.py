"""The mesh of devices and where every array lies on it; models know nothing of it."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vidformers.errors import require

AXES = ("data", "fsdp")
FIELDS = ("video", "index", "label", "mask")  # of a batch, those that devices need


def make_mesh(*, data: int = -1, fsdp: int = 1, devices=None):
    """A mesh over all devices, or over those given.

    Batches are spread over both axes, parameters and moments over `fsdp` alone. `data=-1` takes what `fsdp`
    leaves. Raises ConfigError where the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    require(fsdp >= 1 and (data == -1 or data >= 1), f"mesh.data={data} and mesh.fsdp={fsdp} must be at least 1.")
    data = max(count // fsdp, 1) if data == -1 else data
    require(data * fsdp == count, f"mesh.data={data} x mesh.fsdp={fsdp} needs {data * fsdp} devices; "
                                  f"there are {count}.")
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def batch_sharding(mesh) -> NamedSharding:
    """Rows of a batch over every device."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_shardings(mesh, abstract):
    """A sharding for each array of a state (parameters, moments, averages alike), by shape alone.

    The largest axis that `fsdp` divides is split; of a stacked layer's arrays never axis 0, which a scan walks along.
    """
    def place(path, leaf):
        stacked = any(getattr(part, "key", None) == "layers" for part in path)
        axes = [i for i in range(1 if stacked else 0, leaf.ndim) if leaf.shape[i] % mesh.shape["fsdp"] == 0]
        if not axes or mesh.shape["fsdp"] == 1:
            return replicated(mesh)
        split = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == split else None for i in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(place, abstract)


def put_batch(mesh, batch: dict) -> dict:
    """What models need of a batch: rows of this process (numpy) -> global arrays spread over the mesh.

    The transfer is asynchronous.
    """
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, batch[name]) for name in FIELDS if name in batch}

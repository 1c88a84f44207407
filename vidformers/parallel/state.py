"""The sharding of the training state."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Returns the sharding of each array of a training state.

    The largest axis that is divisible by `mesh.fsdp` is sharded over `fsdp`. Arrays without such an axis are
    replicated.
    Parameters, their optimizer state and their EMA have equal shapes, so they have equal shardings.

    Args:
        mesh: the device mesh.
        abstract: the state as a tree of arrays or of `jax.ShapeDtypeStruct`.
    Returns:
        A tree of the same structure with a `NamedSharding` in place of each array.
    """
    fsdp = mesh.shape["fsdp"]

    def sharding(path, leaf) -> NamedSharding:
        # Axis 0 of stacked layers is the layer axis. A scan loops over it, so it is never sharded.
        is_stacked = any(getattr(key, "key", None) == "layers" for key in path)
        axes = [axis for axis in range(1 if is_stacked else 0, leaf.ndim) if leaf.shape[axis] % fsdp == 0]
        if not axes or fsdp == 1:
            return replicated_sharding(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == largest else None for axis in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(sharding, abstract)

"""The sharding of the training state."""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def replicated_sharding(mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_shardings(mesh, abstract):
    """A sharding for each array of a state (parameters, moments, averages alike), by shape alone.

    The largest axis that `fsdp` divides is split; of a stacked layer's arrays never axis 0, which a scan walks along.
    """

    def place(path, leaf):
        stacked = any(getattr(part, "key", None) == "layers" for part in path)
        axes = [i for i in range(1 if stacked else 0, leaf.ndim) if leaf.shape[i] % mesh.shape["fsdp"] == 0]
        if not axes or mesh.shape["fsdp"] == 1:
            return replicated_sharding(mesh)
        split = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == split else None for i in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(place, abstract)

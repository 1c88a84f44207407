"""The sharding of activations. Every function refers to the ambient mesh (`mesh.with_mesh`)."""

import jax
from jax.sharding import PartitionSpec

from vidformers.parallel.mesh import BATCH_AXES, current_mesh


def constrain(x: jax.Array, axis: int | None = 1) -> jax.Array:
    """Constrains the sharding of activations.

    Without this constraint, GSPMD propagates the sharding of the parameters to the activations, and all-gathers
    activations instead of parameters.

    Args:
        x: activations (b ...). The batch axis is sharded over `data` and `fsdp`.
        axis: the axis that is sharded over `context`, counted from 0; None for none. All other axes are replicated.
    Returns:
        `x`, unchanged if there is no ambient mesh.
    """
    mesh = current_mesh()
    if mesh is None or x.size == 0:
        return x
    replicated, context = [None] * (x.ndim - 1), mesh.shape["context"]
    if context == 1 or axis is None:
        spec = PartitionSpec(BATCH_AXES, *replicated)
    elif x.shape[axis] % context == 0:
        spec = PartitionSpec(BATCH_AXES, *("context" if i == axis else None for i in range(1, x.ndim)))
    else:
        # One token, or one frame where frames are rows of the batch: the rows may be sharded over `context` as well.
        spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, *replicated)
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_rows(x: jax.Array) -> jax.Array:
    """Constrains activations (b ...) to be sharded along the batch axis alone.

    With a mesh axis `context`, `x` is returned unchanged, and the compiler chooses the sharding.
    """
    return x if has_context() else constrain(x, None)


def replicate(x: jax.Array) -> jax.Array:
    """Replicates a small parameter on every device.

    Otherwise GSPMD propagates the sharding of the parameter to the activations and reshards these.
    """
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec())


def padded_count(count: int) -> int:
    """Returns the next multiple of `context` at or above `count`, the length to which an axis must be padded.

    Returns 0, for no padding, if there is no mesh axis `context` or if padding would add more than a quarter of
    `count`.
    """
    padded = -(-count // context_size()) * context_size()
    return padded if has_context() and padded <= 1.25 * count else 0


def has_context() -> bool:
    """Returns whether frames are sharded, over the mesh axis `context`."""
    return context_size() > 1


def context_size() -> int:
    """Returns the number of devices along `context`, 1 if there is no ambient mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["context"]

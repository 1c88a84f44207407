"""The sharding of activations. Every function refers to the ambient mesh (`parallel.mesh.with_mesh`)."""

import jax
from jax.sharding import PartitionSpec

from vidformers.parallel.mesh import BATCH_AXES, current_mesh, num_batch_shards


def shard_activations(x: jax.Array, context_axis: int | None = 1) -> jax.Array:
    """Constrains the sharding of activations.

    Without this constraint, GSPMD propagates the sharding of the parameters to the activations, and all-gathers
    activations instead of parameters.

    Args:
        x: activations (b ...). The batch axis is sharded over `data` and `fsdp`.
        context_axis: the index of the axis that is sharded over `context`, or None. All other axes are replicated.
    Returns:
        `x`, unchanged if there is no ambient mesh or `x` has no elements, as where a model has no class tokens.
    """
    mesh = current_mesh()
    if mesh is None or x.size == 0:
        return x
    replicated, context = [None] * (x.ndim - 1), mesh.shape["context"]
    if context == 1 or context_axis is None:
        spec = PartitionSpec(BATCH_AXES, *replicated)
    elif x.shape[context_axis] % context == 0:
        spec = PartitionSpec(BATCH_AXES, *("context" if i == context_axis else None for i in range(1, x.ndim)))
    else:
        # The axis is not divisible by `context`: it is a single token, or frames are folded into the batch axis. Leave
        # the batch axis unconstrained, since it may be sharded over `context`.
        spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, *replicated)
    return jax.lax.with_sharding_constraint(x, spec)


def shard_batch_unless_context(x: jax.Array) -> jax.Array:
    """Constrains activations (b ...) to be sharded along the batch axis alone, if `context` is 1.

    If `context` > 1, returns `x` unchanged: the constraint would all-gather the axis of frames or groups, which is
    sharded over `context`.
    """
    return x if has_context() else shard_activations(x, None)


def replicate(x: jax.Array) -> jax.Array:
    """Replicates a small parameter on every device.

    Otherwise GSPMD propagates the sharding of the parameter to the activations and reshards these.
    """
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec())


def padded_length(length: int) -> int | None:
    """Returns the smallest multiple of `context` that is at least `length`: the length to which an axis must be padded.

    Returns None if the axis should not be sharded over `context`: `context` is 1, or padding would add more than a
    quarter of `length`. The quarter is a guess. Only padding from 14 to 16 was measured (benchmarks/NOTES.md).
    """
    padded = -(-length // context_size()) * context_size()
    return padded if has_context() and padded <= 1.25 * length else None


def has_context() -> bool:
    """Returns whether `context` > 1, so that frames are sharded."""
    return context_size() > 1


def batch_shards() -> int:
    """Returns the number of shards of the batch axis, 1 if there is no ambient mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else num_batch_shards(mesh)


def context_size() -> int:
    """Returns the number of devices along `context`, 1 if there is no ambient mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["context"]

"""The sharding of activations."""

import jax
from jax.sharding import PartitionSpec as P

from vidformers.parallel.mesh import ROWS, current_mesh


def constrain(x, axis: int | None = 1):
    """x (b ...), laid out with its rows over `data` and `fsdp`, `axis` over `context` and all others whole.

    Without it the compiler spreads features as their parameters are, and moves activations about instead of these.
    Where nothing says which mesh (`on`), the identity.
    """
    mesh = current_mesh()
    if mesh is None or x.size == 0:
        return x
    spec = [ROWS] + [None] * (x.ndim - 1)
    if mesh.shape["context"] > 1 and axis is not None:
        if x.shape[axis] % mesh.shape["context"] == 0:
            spec[axis] = "context"
        else:  # what has one token, or one frame because frames are rows: rows may go to all devices
            spec[0] = P.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, P(*spec))


def constrain_rows(x):
    """x (b ...), of which nothing but rows is spread; what `context` spreads is left to the compiler."""
    return constrain(x, None) if not has_context() else x


def replicate(x):
    """x, a small parameter, whole on every device: as its parts lie, the compiler would move activations about."""
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, P())


def padded_count(count: int) -> int:
    """`count`, or little more that `context` divides; 0 where it spreads nothing or most would be filling."""
    filled = -(-count // context_size()) * context_size()
    return filled if context_size() > 1 and filled <= 1.25 * count else 0


def has_context() -> bool:
    """Whether frames are sharded over the mesh axis `context`."""
    return context_size() > 1


def context_size() -> int:
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["context"]

"""The sharding of activations."""

import jax
from jax.sharding import PartitionSpec as P

from vidformers.parallel.mesh import ROWS, current_mesh


def spread(x, axis: int | None = 1):
    """x (b ...), laid out with its rows over `data` and `fsdp`, `axis` over `context` and all others whole.

    Without it the compiler spreads features as their parameters are, and moves activations about instead of these.
    Where nothing says which mesh (`on`), the identity.
    """
    mesh = _mesh()
    if mesh is None or x.size == 0:
        return x
    spec = [ROWS] + [None] * (x.ndim - 1)
    if mesh.shape["context"] > 1 and axis is not None:
        if x.shape[axis] % mesh.shape["context"] == 0:
            spec[axis] = "context"
        else:  # what has one token, or one frame because frames are rows: rows may go to all devices
            spec[0] = P.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, P(*spec))


def spread_rows(x):
    """x (b ...), of which nothing but rows is spread; what `context` spreads is left to the compiler."""
    return spread(x, None) if frames_together() else x


def whole(x):
    """x, a small parameter, whole on every device: as its parts lie, the compiler would move activations about."""
    return x if _mesh() is None else jax.lax.with_sharding_constraint(x, P())


def filled_up(count: int) -> int:
    """`count`, or little more that `context` divides; 0 where it spreads nothing or most would be filling."""
    filled = -(-count // _context()) * _context()
    return filled if _context() > 1 and filled <= 1.25 * count else 0


def frames_together() -> bool:
    """Whether a device holds all frames of its clips."""
    return _context() == 1


def _context() -> int:
    mesh = _mesh()
    return 1 if mesh is None else mesh.shape["context"]

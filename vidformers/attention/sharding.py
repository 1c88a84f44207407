"""Attention kernels that GSPMD cannot divide: every device computes its own part of the batch."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vidformers.attention.kernels import KeyValues
from vidformers.parallel.activations import context_size
from vidformers.parallel.mesh import BATCH_AXES, current_mesh, num_batch_shards


def on_each_device(kernel, q, key_values):
    """Returns `kernel(q, key_values)`, computed by every device of the mesh for its own part of the batch.

    GSPMD cannot divide a Pallas kernel. It refuses cuDNN's where queries and keys are sharded differently, as with the
    keys of a dictionary.
    """
    if current_mesh() is None:
        return kernel(q, key_values)
    (lead, rows), queries = partition(q), q.shape[-3]
    if rows is not None:
        padding = -queries % context_size()
        q = pad_axis(q, -3, padding)
        key_values = [_with_padding_queries(item, queries, padding) for item in key_values]

    def spec(x, row_axis=None):
        names: list = [None] * x.ndim
        for i in range(1, x.ndim - 2):  # the leading axes, from the last on: x may have fewer of them than q
            same = i <= len(lead) and x.shape[-3 - i] == q.shape[-3 - i]
            names[-3 - i] = lead[-i] if same else None
        if row_axis is not None and x.shape[row_axis] == q.shape[-3]:
            names[row_axis] = rows
        return PartitionSpec(*names)

    def specs(item):
        mask, bias = (None if x is None else spec(x, -2) for x in (item.mask, item.bias))
        return KeyValues(spec(item.k), spec(item.v), mask, bias)

    out = jax.shard_map(
        kernel,
        mesh=current_mesh(),
        in_specs=(spec(q, -3), [specs(item) for item in key_values]),
        out_specs=spec(q, -3),
        check_vma=False,  # Pallas kernels do not say along which axes their results vary
    )(q, key_values)
    return out[..., :queries, :, :]


def _with_padding_queries(item: KeyValues, queries: int, padding: int) -> KeyValues:
    """Returns `item` with a mask and a bias for `padding` more queries, unless they are equal for all queries."""
    mask, bias = (
        x if x is None or x.shape[-2] == 1 else with_queries(x, queries, padding) for x in (item.mask, item.bias)
    )
    return item._replace(mask=mask, bias=bias)


def partition(q):
    """Returns the mesh axes over which queries (... q h e) are divided: of the leading axes, and of the queries.

    `context` divides the second leading axis, the groups. If that is not possible in equal parts, it divides the
    queries, which are then padded. Returns None if the batch cannot be divided in equal parts. Without a mesh there is
    one part.
    """
    mesh, lead = current_mesh(), q.shape[:-3]
    if mesh is None:
        return [None] * len(lead), None
    if not lead or lead[0] % num_batch_shards(mesh):
        return None
    names, context = [BATCH_AXES, *[None] * (len(lead) - 1)], mesh.shape["context"]
    if context == 1:
        return names, None
    if len(lead) > 1 and lead[1] % context == 0:
        return [BATCH_AXES, "context", *names[2:]], None
    return names, "context"


def with_queries(x, queries: int, padding: int):
    """Returns x (... h q k) for all queries, and for `padding` more, which take the values of the last query."""
    if x is None:
        return None
    x = jnp.broadcast_to(x, (*x.shape[:-2], queries, x.shape[-1]))
    return pad_axis(x, -2, padding, mode="edge")


def pad_axis(x, axis: int, padding: int, **options):
    """Returns x with `padding` more entries, zeros by default, at the end of an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, padding)
    return jnp.pad(x, widths, **options)

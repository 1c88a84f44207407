"""The sharding of a batch."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidformers.parallel.mesh import BATCH_AXES

_DEVICE_FIELDS = ("video", "index", "label", "mask", "stop")  # other fields of a batch stay on the host


def batch_sharding(mesh: Mesh, name: str, ndim: int) -> NamedSharding:
    """Returns the sharding of one batch field.

    The batch axis is sharded over `data` and `fsdp`. The frame axis t of `video` (b ... t y x c) and of `index`
    (b ... t) is sharded over `context`.

    Args:
        mesh: the device mesh.
        name: the name of the field.
        ndim: the number of axes of the field.
    """
    axes_after_frames = {"video": 3, "index": 0}.get(name)
    if axes_after_frames is None or mesh.shape["context"] == 1:
        return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *[None] * (ndim - axes_after_frames - 2), "context"))


def abstract_batch(
    mesh: Mesh, video: tuple[int, ...], stop: bool = False, multi_hot: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a batch of `jax.ShapeDtypeStruct` with shardings, for which a step can be compiled.

    Args:
        mesh: the device mesh.
        video: the global shape of the field `video` (b ... t y x c).
        stop: whether the batch has the field `stop`, by which the processes of a run agree to stop.
        multi_hot: the number of classes if clips have several labels, and None if `label` is a class number.
    """
    rows = video[:1]
    fields = {
        "video": (video, np.uint8),
        "index": (video[:-3], np.int32),
        "label": (rows, np.int32) if multi_hot is None else ((*rows, multi_hot), np.float32),
        "mask": (rows, np.float32),
    } | ({"stop": (rows, np.float32)} if stop else {})
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name, len(shape)))
        for name, (shape, dtype) in fields.items()
    }


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the fields that the devices need, as global arrays sharded over `mesh`. The transfer is asynchronous.

    Args:
        mesh: the device mesh.
        batch: the rows of this process.
    """
    return {name: put_field(mesh, name, batch[name]) for name in _DEVICE_FIELDS if name in batch}


def put_field(mesh: Mesh, name: str, rows: np.ndarray) -> jax.Array:
    """Returns one field of a batch as a global array, see `put_batch`."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh, name, rows.ndim), rows)

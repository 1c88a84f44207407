"""The sharding of a batch."""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vidformers.parallel.mesh import ROWS

FIELDS = ("video", "index", "label", "mask", "stop")  # of a batch, those that devices need


def batch_sharding(mesh, name: str, ndim: int) -> NamedSharding:
    """Of the field `name` of a batch: rows over `data` and `fsdp`, the frames of video (b ... t y x c) and index
    (b ... t) over `context`."""
    after = {"video": 3, "index": 0}.get(name)  # axes behind the frames
    if after is None or mesh.shape["context"] == 1:
        return NamedSharding(mesh, P(ROWS))
    return NamedSharding(mesh, P(ROWS, *[None] * (ndim - after - 2), "context"))


def abstract_batch(mesh, video: tuple[int, ...], stop: bool = False) -> dict:
    """A batch whose video has this shape (b ... t y x c), by shape, type and sharding; the field `stop` on demand."""
    rows = video[:1]
    shapes = {
        "video": (video, np.uint8),
        "index": (video[:-3], np.int32),
        "label": (rows, np.int32),
        "mask": (rows, np.float32),
    } | ({"stop": (rows, np.float32)} if stop else {})
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name, len(shape)))
        for name, (shape, dtype) in shapes.items()
    }


def put_batch(mesh, batch: dict) -> dict:
    """What models need of a batch: rows of this process (numpy) -> global arrays spread over the mesh.

    The transfer is asynchronous.
    """
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, name, batch[name].ndim), batch[name])
        for name in FIELDS
        if name in batch
    }

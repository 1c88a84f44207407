"""The mesh of devices and where every array lies on it; models say only which axis of an array may be spread."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vidformers.errors import require

AXES = ("data", "fsdp", "context")
ROWS = ("data", "fsdp")  # the axes that rows of a batch are spread over
FIELDS = ("video", "index", "label", "mask", "stop")  # of a batch, those that devices need


def make_mesh(*, data: int = -1, fsdp: int = 1, context: int = 1, devices=None):
    """A mesh over all devices, or over those given.

    Rows of a batch are spread over `data` and `fsdp`, the frames of each over `context`, parameters and moments over
    `fsdp`. `data=-1` takes what the others leave. Neighbours of `context`, which exchange most, belong to one process.

    Raises:
        ConfigError: the product is not the number of devices, or `context` would reach over hosts.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    require(fsdp >= 1 and context >= 1 and (data == -1 or data >= 1),
            f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.context={context} must be at least 1.")
    data = max(count // (fsdp * context), 1) if data == -1 else data
    require(data * fsdp * context == count, f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.context={context} needs "
                                            f"{data * fsdp * context} devices; there are {count}.")
    local = sum(device.process_index == jax.process_index() for device in devices)
    require(local % context == 0, f"mesh.context={context} must divide the {local} devices of a process.")
    kind = dict(axis_types=(AxisType.Auto,) * 3)
    mesh = jax.make_mesh((data, fsdp, context), AXES, devices=devices, **kind)
    if any(len({device.process_index for device in group}) > 1 for group in mesh.devices.reshape(-1, context)):
        # Arranged along the links of the machine, as of a TPU, it may reach over hosts; in their order it does not.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = jax.sharding.Mesh(np.reshape(devices, (data, fsdp, context)), AXES, **kind)
    return mesh


def row_parts(mesh) -> int:
    """Parts that the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


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
    shapes = {"video": (video, np.uint8), "index": (video[:-3], np.int32), "label": (rows, np.int32),
              "mask": (rows, np.float32)} | ({"stop": (rows, np.float32)} if stop else {})
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name, len(shape)))
            for name, (shape, dtype) in shapes.items()}


def on(mesh, function):
    """`function`, in which `spread` means this mesh."""
    @functools.wraps(function)
    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


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


def _mesh():
    """The mesh of `make_mesh` that `on` has set; None for one device, or under a mesh of somebody else's."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None


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
    return {name: jax.make_array_from_process_local_data(batch_sharding(mesh, name, batch[name].ndim), batch[name])
            for name in FIELDS if name in batch}

"""The kind of device for which a program is traced, for layouts and kernels that depend on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

TILE_ROWS, TILE_LANES = 16, 128  # TPUs store the last two axes of a bfloat16 array in tiles of 16 x 128

_platform: ContextVar[str | None] = ContextVar("the platform that `traced_for` has set", default=None)


def target_platform() -> str:
    """Returns the platform for which the current program is traced: 'cpu', 'gpu' or 'tpu'.

    This is the platform that `traced_for` has set, else `device_platform()`.
    """
    return _platform.get() or device_platform()


def device_platform() -> str:
    """Returns the platform of the devices of the ambient mesh (`parallel.mesh.with_mesh`): 'cpu', 'gpu' or 'tpu'.

    So a program may be compiled for devices that the process does not have. Without an ambient mesh, it is the platform
    of JAX's default backend.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def is_assumed() -> bool:
    """Returns whether `traced_for` has set the platform, so that the devices may be of another one."""
    return _platform.get() is not None


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Traces programs as for this platform, whatever the devices are. Layouts change, and values only by rounding."""
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)

"""The bfloat16 peak and the memory bandwidth of devices, by their kind."""

import jax

from vidformers.parallel.topology import CHIPS

# The chips of `CHIPS` by `Device.device_kind`.
_KINDS = {
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5e": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v5p": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "TPU v6e": CHIPS["v6e"],
    "NVIDIA H100 80GB HBM3": CHIPS["h100"],
}
# Floating-point operations per second in bfloat16, without sparsity, of one device of JAX, by `Device.device_kind`.
# The figures are those of the vendors. On TPU7x a device is one of the two cores of a chip.
PEAKS = {kind: chip.peak for kind, chip in _KINDS.items()} | {
    "TPU v4": 275e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": CHIPS["h100"].peak,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
# Bytes per second to and from the memory of one device, by the vendors' figures.
BANDWIDTHS = {kind: chip.bandwidth for kind, chip in _KINDS.items()} | {
    "NVIDIA A100-SXM4-40GB": 1555e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA A100 80GB PCIe": 1935e9,
    "NVIDIA H200": 4.8e12,
    "NVIDIA L4": 300e9,
    "NVIDIA L40S": 864e9,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns the bfloat16 floating-point operations per second of a device, or None if its kind is unknown."""
    return PEAKS.get(device.device_kind)


def memory_bandwidth(device: jax.Device) -> float | None:
    """Returns the bytes per second to and from the memory of a device, or None if its kind is unknown."""
    return BANDWIDTHS.get(device.device_kind)

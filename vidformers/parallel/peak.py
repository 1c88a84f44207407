"""The bfloat16 peak of devices, by their kind."""

import jax

from vidformers.parallel.topology import CHIPS

# Floating-point operations per second in bfloat16, without sparsity, of one device of JAX, by `Device.device_kind`.
# The figures are those of the vendors. On TPU7x a device is one of the two cores of a chip.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v5p": CHIPS["v5p"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
    "TPU v6e": CHIPS["v6e"].peak,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": CHIPS["h100"].peak,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": CHIPS["h100"].peak,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns the bfloat16 floating-point operations per second of a device, or None if its kind is unknown."""
    return PEAKS.get(device.device_kind)

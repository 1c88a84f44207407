"""Weights that are determined by their name and shape, so that a golden file need not hold them."""

import math
import re
import zlib

import numpy as np


def draw(name, shape):
    """Returns float32 values: kernels that keep the size of their inputs, scales of norms around 1, variances of
    batch norm from 2 to 6, others around 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(2, 6, shape).astype(np.float32)
    if len(shape) > 1 and "pos" not in name and "token" not in name and "cls" not in name and "time_embed" not in name:
        google = name.endswith("kernel")  # (in, out); PyTorch has (out, in)
        inputs = shape[:-1] if google else shape[1:]
        if google and len(shape) == 3:
            inputs = shape[:2] if "/out/" in name else shape[:1]
        return rng.normal(0, 2.0 * math.prod(inputs) ** -0.5, shape).astype(np.float32)
    is_scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "scale", "gamma", "lambda1")) or (
        re.search(r"norm|\bbn\d?\.|downsample\.1\.", name.lower()) and name.endswith("weight")
    )
    return rng.normal(float(bool(is_scale)), 0.3, shape).astype(np.float32)


def clip(shape):
    """Returns normalised pixels."""
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)

"""What a process has imported. This module imports nothing of grain and JAX."""

import os
import sys

import numpy as np

HEAVY = ("jax", "grain", "vidformers", "flax", "tensorflow")


def probe(task):
    """Returns which of `HEAVY` the process that makes a batch has imported. `task` is a pair of a task and `make`."""
    inner, make = task
    if make is None:
        raise KeyError(f"batch {inner}", lambda: None) if inner == 4 else KeyError(f"batch {inner}")
    assert make(inner)["mask"].any()
    return {
        "environment": np.array(os.environ["JAX_PLATFORMS"], "S9"),
        "imported": np.array([name in sys.modules for name in HEAVY]),
    }

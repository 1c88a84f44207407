"""Writes zip.pth and legacy.pth: a checkpoint as PyTorch training code saves it, in both forms of torch.save.

To write the files again, where torch is installed: python tests/goldens/make_torch_files.py
"""

import argparse
import collections
from pathlib import Path

import torch


def checkpoint():
    """Returns tensors of several types, some of them views, whose values show their position, and other objects."""
    whole = torch.arange(60, dtype=torch.float32)
    state = collections.OrderedDict(
        {
            "module.model.plain": whole[:6].reshape(2, 3),
            "module.model.turned": whole[6:18].reshape(3, 4).T,
            "module.model.strided": whole[20:60].reshape(4, 10)[:, ::3],
            "module.model.half": torch.arange(4, dtype=torch.float16) / 4,
            "module.model.brain": torch.arange(4, dtype=torch.bfloat16) / 4,
            "module.model.double": torch.arange(3, dtype=torch.float64) / 7,
            "module.model.count": torch.tensor(12),
            "module.model.mask": torch.tensor([True, False]),
            "module.model.empty": torch.zeros(0, 3),
            "module.model.parameter": torch.nn.Parameter(torch.ones(2, 2)),
        }
    )
    return {
        "epoch": 3,
        "model_state": state,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "counter": collections.Counter("aab"),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }


if __name__ == "__main__":
    folder = Path(__file__).parent
    torch.save(checkpoint(), folder / "zip.pth")
    torch.save(checkpoint(), folder / "legacy.pth", _use_new_zipfile_serialization=False)

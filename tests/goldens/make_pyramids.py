"""Writes the goldens of Video Swin: small models with random weights, one input each, and their logits.

Needs torch and torchvision. The library and its tests import none of them: the tests read the .npz files
beside this script. To write the files again, in an environment of its own:

    pip install torch torchvision numpy
    python tests/goldens/make_pyramids.py

Each archive holds every parameter and statistic under its name in a checkpoint file, `input` (float32, b t y x c),
`output` (logits) and `versions` (JSON).
"""

import json
import pathlib
import platform

import numpy as np
import torch
import torchvision
from torchvision.models.video import SwinTransformer3d

FOLDER = pathlib.Path(__file__).parent


def draw(rng, shape, center=0.0, scale=1.0):
    """Returns normal numbers rounded to multiples of 1/256, which are exact in float32 and compress well."""
    return (np.round(rng.normal(center, scale, shape) * 256) / 256).astype(np.float32)


def randomise(model, rng):
    """Draws every parameter and statistic, also those that start at zero or one, so that each influences the logits."""
    for name, value in model.state_dict().items():
        if not value.dtype.is_floating_point:
            continue
        is_scale = "norm" in name and name.endswith("weight") or name.endswith("running_var")
        drawn = draw(rng, value.shape, center=float(is_scale), scale=0.2)
        value.copy_(torch.from_numpy(np.maximum(drawn, 0.25) if name.endswith("running_var") else drawn))


def write(name, model, seed, shape, classify):
    """Writes one archive; `classify(model, video)` takes a tensor (b t y x c) and returns the logits."""
    rng = np.random.default_rng(seed)
    randomise(model, rng)
    pixels = draw(rng, shape)
    with torch.inference_mode():
        output = classify(model.eval(), torch.from_numpy(pixels))
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    state = {key: value.numpy() for key, value in model.state_dict().items() if value.dtype.is_floating_point}
    np.savez_compressed(
        FOLDER / f"{name}.npz", **state, input=pixels, output=output.numpy(), versions=np.array(json.dumps(versions))
    )


def swin(patch_frames, window):
    return SwinTransformer3d([patch_frames, 4, 4], 16, [2, 2], [2, 4], window, num_classes=5)


def classify_clip(model, video):
    return model(video.permute(0, 4, 1, 2, 3))


if __name__ == "__main__":
    # Windows divide the grid (4 8 8) and are shifted on every axis. At the second stage they fill the grid in y and x.
    write("swin_whole", swin(2, [2, 4, 4]), 0, (2, 8, 32, 32, 3), classify_clip)
    # The grid (3 7 7) is padded in y and x and shorter than the window in t. The second stage's (3 4 4) is shorter
    # than the window on every axis.
    write("swin_ragged", swin(1, [4, 5, 5]), 1, (2, 3, 28, 28, 3), classify_clip)

"""Measures how much relevance falls on the moving digit, for trained models and for random ones.

Command: python -m benchmarks.relevance --runs=DIR [--clips=100]

DIR holds trained runs of configs/demo.py, one folder per model. Held-out clips are explained for the class that the
model finds likeliest. The box of a frame is the smallest one that holds all pixels in which the digit has at least a
quarter of its highest opacity. A patch spreads its relevance evenly over its pixels.

Prints one JSON line per model: for each map, the mean share of relevance inside the box, divided by the mean share of
the area inside the box. 1 is chance. `trained_*` are the trained parameters, and `drawn_*` are random parameters.
"""

import argparse
import datetime
import json
from pathlib import Path

import cv2
import jax
import numpy as np
from flax import nnx

from input_pipeline.motion_clips import digit_opacity
from vidformers import load
from vidformers.inference.explain.relevance import relevance

MAPS = ("gradient", "rollout")
VAL_CLIPS = 500  # of the demo's data set


def inside_box(number, index, short_side, size):
    """Returns (t y x), true inside the digit's box, for the frames `index` of a clip as the model sees them."""
    opacity, edge = digit_opacity(number)[index], (short_side - size) // 2
    out = np.zeros((len(index), size, size), bool)
    for inside, frame in zip(out, opacity, strict=True):
        frame = cv2.resize(frame, (short_side, short_side), interpolation=cv2.INTER_AREA)[edge:, edge:][:size, :size]
        y, x = np.nonzero(frame >= 0.25 * max(frame.max(), 1e-6))
        inside[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return out


def shares_inside(maps, inside):
    """Returns the shares of the relevance maps (t' y' x') and of the area that are `inside` (t y x)."""
    for axis in range(3):
        maps = maps.repeat(inside.shape[axis] // maps.shape[axis], axis)
    return (maps * inside).sum() / max(maps.sum(), 1e-30), inside.mean()


def measure(folder, clips):
    """Returns the mean share of the area, and the ratios of the module's docstring, for the run in `folder`."""
    data = json.loads((folder / "run.json").read_text())["config"]["data"]
    predictor = load(folder)
    random_parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(predictor.make_model(rngs=nnx.Rngs(1)))))()
    explain = jax.jit(lambda parameters, *clip: relevance(nnx.merge(predictor.graph, parameters), *clip))
    numbers = np.linspace(0, VAL_CLIPS - 1, clips).astype(int)
    videos = [Path(data["root"]) / "val" / f"{number:06d}.mp4" for number in numbers]
    shares = {(weights, name): [] for weights in ("trained", "drawn") for name in MAPS}
    for clip, number in zip(predictor.clips(videos), numbers, strict=True):
        inside = inside_box(number, clip.index, data["test_short_side"], data["size"])
        for weights, parameters in (("trained", predictor.parameters), ("drawn", random_parameters)):
            found = explain(parameters, clip.frames[None], clip.index[None])
            for name in MAPS:
                shares[weights, name].append(shares_inside(np.asarray(getattr(found, name)[0]), inside))
    means = {f"{weights}_{name}": np.mean(rows, axis=0) for (weights, name), rows in shares.items()}
    ratios = {name: float(relevance_share / area_share) for name, (relevance_share, area_share) in means.items()}
    return {"area": float(means["trained_gradient"][1]), **ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=100)
    args = parser.parse_args()
    for folder in sorted(path.parent for path in args.runs.glob("*/run.json")):
        print(
            json.dumps(
                {
                    "benchmark": "relevance",
                    "model": folder.name,
                    "clips": args.clips,
                    **measure(folder, args.clips),
                    "date": str(datetime.date.today()),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

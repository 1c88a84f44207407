"""Whether relevance falls on what moves: its share inside the digit's box, for trained models and for random ones.

Command: python -m benchmarks.relevance --runs=DIR [--clips=100]
DIR holds runs of configs/demo.py, a folder a model, trained. Explains held-out clips for the class that the model
finds likeliest. The box is the smallest that holds all pixels in which the digit has a quarter or more of its opacity;
a patch spreads its relevance evenly over its pixels. One JSON line a model: mean share of relevance inside the box over
the mean share of the area that the box takes, for both maps, trained and with the same model's weights drawn anew.
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


def boxes(number, index, short_side, size):
    """(t y x), true inside the digit's box, in the frames of that index of a clip, as the model sees them."""
    opacity, edge = digit_opacity(number)[index], (short_side - size) // 2
    out = np.zeros((len(index), size, size), bool)
    for inside, frame in zip(out, opacity, strict=True):
        frame = cv2.resize(frame, (short_side, short_side), interpolation=cv2.INTER_AREA)[edge:, edge:][:size, :size]
        y, x = np.nonzero(frame >= 0.25 * max(frame.max(), 1e-6))
        inside[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    return out


def spread(maps, inside):
    """The share of maps (t' y' x') inside boxes (t y x), and that of the area."""
    for axis in range(3):
        maps = maps.repeat(inside.shape[axis] // maps.shape[axis], axis)
    return (maps * inside).sum() / max(maps.sum(), 1e-30), inside.mean()


def measure(folder, clips):
    config = json.loads((folder / "run.json").read_text())["config"]
    predictor = load(folder)
    drawn = jax.jit(lambda: nnx.to_pure_dict(nnx.state(predictor.make_model(rngs=nnx.Rngs(1)))))()
    explain = jax.jit(lambda parameters, *clip: relevance(nnx.merge(predictor.graph, parameters), *clip))
    data = config["data"]
    numbers = np.linspace(0, 499, clips).astype(int)
    videos = [Path(data["root"]) / "val" / f"{number:06d}.mp4" for number in numbers]
    shares = {(weights, map): [] for weights in ("trained", "drawn") for map in ("gradient", "rollout")}
    for clip, number in zip(predictor.clips(videos), numbers, strict=True):
        inside = boxes(number, clip.index, data["test_short_side"], data["size"])
        for weights, parameters in (("trained", predictor.parameters), ("drawn", drawn)):
            found = explain(parameters, clip.frames[None], clip.index[None])
            for map in ("gradient", "rollout"):
                shares[weights, map].append(spread(np.asarray(getattr(found, map)[0]), inside))
    found = {
        f"{weights}_{map}": (lambda mean: float(mean[0] / mean[1]))(np.mean(rows, axis=0))
        for (weights, map), rows in shares.items()
    }
    return {"area": float(np.mean([area for _, area in shares["trained", "gradient"]])), **found}


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

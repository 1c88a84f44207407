"""Draws the README's moving picture: clips of the demo, and what a trained model looked at.

    python -m benchmarks.picture --workdir=runs/demo --out=docs/demo.gif

Each column is a validation clip of another class. The upper row shows its frames, the lower row the relevance of its
patches by attention rollout. Prints a JSON line with the clips and the size of the file.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.arguments import parse
from benchmarks.measure import report
from input_pipeline.annotations import read_manifest
from input_pipeline.files import write_bytes
from vidformers import load
from vidformers.inference.explain.pictures import overlay

SIDE, GAP = 112, 6  # pixels
FRAME_MILLISECONDS = 180
COLOURS = 96


def column(explanation) -> np.ndarray:
    """Frames of one clip above its relevance, uint8 (t, y, x, 3)."""
    frames = np.stack([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE))) for frame in explanation.clip.frames])
    gap = np.full((len(frames), GAP, SIDE, 3), 255, np.uint8)
    return np.concatenate([frames, gap, overlay(frames, explanation.rollout)], axis=1)


def encode_gif(frames) -> bytes:
    """Frames uint8 (t, y, x, 3) as a GIF that repeats for ever."""
    first, *others = (Image.fromarray(frame).quantize(COLOURS, dither=Image.Dither.NONE) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, optimize=True)
    return content.getvalue()


def main():
    args = parse(__doc__, workdir="runs/demo", data="data/motion_clips", out="docs/demo.gif", clips=6)
    model = load(args.workdir)
    records = read_manifest("val.csv", root=args.data, num_classes=10).records
    # One clip of each class in turn, the forward one of each pair of reversals.
    chosen = [next(record for record in records if record.label == label) for label in range(0, 10, 2)]
    chosen += [next(record for record in records if record.label == label) for label in range(1, 10, 2)]
    columns = [column(model.explain(record.path)) for record in chosen[: args.clips]]
    gap = np.full((*columns[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for each in columns for part in (each, gap)][:-1]
    content = encode_gif(np.concatenate(parts, axis=2))
    write_bytes(Path(args.out), content)
    report(benchmark="picture", clips=[Path(record.path).name for record in chosen[: args.clips]], bytes=len(content))


if __name__ == "__main__":
    main()

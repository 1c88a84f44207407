"""Draws the README's moving picture: clips of the demo, and what a trained model looked at.

    python -m benchmarks.picture --workdir=runs/demo --out=docs/demo.gif

Each column is a validation clip of another class. The upper row shows its frames, the lower row the relevance of its
patches by attention rollout. Prints a JSON line with the clips and the size of the file.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.arguments import output, parse
from benchmarks.measure import report
from input_pipeline.annotations import read_manifest
from input_pipeline.files import write_bytes
from vidformers import load

SIDE, GAP = 112, 6  # pixels
FRAME_MILLISECONDS = 200
COLOURS = 128
HEAT_SHARE = 0.6  # of the relevance in the lower row; the rest is the frame in grey


def column(explanation) -> np.ndarray:
    """Returns the frames of one clip above its relevance, uint8 (t, y, x, 3)."""
    frames = np.stack([cv2.resize(frame, (SIDE, SIDE)) for frame in explanation.clip.frames])
    gap = np.full((len(frames), GAP, SIDE, 3), 255, np.uint8)
    return np.concatenate([frames, gap, heat(frames, explanation.rollout)], axis=1)


def heat(frames, maps) -> np.ndarray:
    """Returns grey frames under maps (t, y', x'), scaled from the lowest to the highest value of the clip."""
    maps = np.repeat(maps, len(frames) // len(maps), axis=0)
    scaled = (maps - maps.min()) / (np.ptp(maps) + 1e-12)
    images = []
    for frame, values in zip(frames, scaled, strict=True):
        values = cv2.resize(np.float32(values), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        colours = cv2.applyColorMap(np.uint8(255 * values), cv2.COLORMAP_INFERNO)[..., ::-1]
        grey = frame.mean(axis=-1, keepdims=True)
        images.append((HEAT_SHARE * colours + (1 - HEAT_SHARE) * grey).astype(np.uint8))
    return np.stack(images)


def encode_gif(frames) -> bytes:
    """Returns frames uint8 (t, y, x, 3) as a GIF that loops."""
    first, *others = (Image.fromarray(frame).quantize(COLOURS, dither=Image.Dither.NONE) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, optimize=True)
    return content.getvalue()


def main():
    args = parse(__doc__, workdir="runs/demo", data="data/motion_clips", out="docs/demo.gif", clips=6)
    with output(args.out, is_folder=False):
        draw(args)


def draw(args):
    model = load(args.workdir)
    records = read_manifest("val.csv", root=args.data, num_classes=10).records
    # One clip of each class, forward ones first; the k-th class takes its k-th clip, so that the digits differ.
    labels = [*range(0, 10, 2), *range(1, 10, 2)][: args.clips]
    chosen = [[record for record in records if record.label == label][k] for k, label in enumerate(labels)]
    columns = [column(model.explain(record.path)) for record in chosen]
    gap = np.full((*columns[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for each in columns for part in (each, gap)][:-1]
    content = encode_gif(np.concatenate(parts, axis=2))
    write_bytes(Path(args.out), content)
    report(benchmark="picture", clips=[Path(record.path).name for record in chosen], bytes=len(content))


if __name__ == "__main__":
    main()

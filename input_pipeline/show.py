"""Draws the clips that the model receives: python -m input_pipeline.show --config=FILE --out=batch.png."""

import math
import os

import cv2
import numpy as np

from input_pipeline.commands import command, run_program
from input_pipeline.figures import drawn_texts, num_letters, wrapped
from input_pipeline.files import write_bytes
from input_pipeline.outputs import output_file
from input_pipeline.text import print_line

USAGE = """python -m input_pipeline.show --config=FILE[:NAME] [--config.data.field=value ...] --out=FILE.png
    [--rows=8] [--split=train|val|test] [--video=0]

Draws the first training batch of a run, one row for each clip, with its label and file. The number above each frame is
its index in the video. --split=val or test draws the test views of one video of that part instead; --video is its
index in the list."""

# In pixels: the maximum total width of the frames in a row, the maximum width of the texts to their left, the gap
# between frames, the space above them, and the width of a letter.
_MAX_WIDTH, _MAX_MARGIN, _GAP, _HEAD, _LETTER = 3200, 260, 4, 18, 8


@command(USAGE)
def main(argv):
    from configs.loading import count_classes, read_flags, require
    from input_pipeline.pipeline import Pipeline

    config, flags = read_flags(argv, {"out": None, "rows": "8", "split": "train", "video": "0"})
    require(bool(flags["out"]), "--out=FILE.png is missing; --help shows how to write it.")
    require(flags["split"] in ("train", "val", "test"), f"--split={flags['split']} must be train, val or test.")
    for name, least in (("rows", 1), ("video", 0)):
        require(
            flags[name].isdecimal() and int(flags[name]) >= least,
            f"--{name}={flags[name]} must be a whole number of at least {least}.",
        )
    count_classes(config)
    with output_file(flags["out"], "out"):
        pipeline = Pipeline(**config.data.to_dict() | {"workers": 0})
        labels, clips, indices = _rows(pipeline, config, flags)
        write_bytes(flags["out"], encode_png(draw(labels, clips, indices)))
    print_line(f"{flags['out']} shows {len(clips)} clips of {clips.shape[1]} frames, {clips.shape[2]} pixels wide.")


def _rows(pipeline, config, flags):
    """Returns the clips that the flags select, see `train_rows` and `val_rows`."""
    from configs.loading import require

    if flags["split"] == "train":
        return train_rows(pipeline, int(flags["rows"]), config.seed)
    records = pipeline.manifest(flags["split"]).records
    require(
        int(flags["video"]) < len(records),
        f"--video={flags['video']} must be below {len(records)}, the number of videos of --split={flags['split']}.",
    )
    protocol = config.eval
    return val_rows(pipeline, records[int(flags["video"])], protocol.clips, protocol.crops, protocol.frames)


def train_rows(pipeline, rows, seed):
    """Returns the first training clips of a run.

    Args:
        pipeline: a `Pipeline`.
        rows: number of clips.
        seed: the seed of the run.

    Returns:
        labels: one text for each clip.
        clips: (rows, t, y, x, 3) uint8.
        indices: (rows, t) ints, the index of each frame in its video.
    """
    batches = pipeline.train_batches(batch_size=rows, seed=seed)
    batch = next(batches)
    batches.close()
    records = pipeline.train_manifest.records
    labels = [
        _text(pipeline, records[id], label, error)
        for id, label, error in zip(batch["id"], batch["label"], batch["error"], strict=True)
    ]
    return labels, batch["video"], batch["index"]


def val_rows(pipeline, record, clips, crops, frames=None):
    """Returns the test views of a video, in the layout of `train_rows`."""
    batches = pipeline.val_batches(batch_size=1, clips=clips, crops=crops, frames=frames, records=[record])
    batch = next(batches)
    batches.close()
    text = _text(pipeline, record, batch["label"][0], batch["error"][0])
    labels = [
        f"{text}\nclip {view // crops + 1} of {clips}, crop {view % crops + 1} of {crops}"
        for view in range(clips * crops)
    ]
    return labels, batch["video"][0], batch["index"][0]


def _text(pipeline, record, label, error):
    numbers = np.flatnonzero(label) if label.ndim else [label] * int(label >= 0)
    name = "; ".join(pipeline.class_names[number] for number in numbers) or "no label"
    place = "" if record.position is None else f" #{record.position}"
    lines = [name, os.path.basename(record.path) + place, error.decode("utf-8", "replace")]
    return "\n".join(line for line in lines if line)


def draw(labels, clips, indices) -> np.ndarray:
    """Draws clips below each other.

    Args:
        labels: one text for each clip.
        clips: (n, t, y, x, 3) uint8.
        indices: (n, t) ints, written above the frames.

    Returns:
        (y, x, 3) uint8. Frames keep their size unless a row would be wider than 3200 pixels.
    """
    with drawn_texts(labels) as texts:
        return _draw(list(map(wrapped, texts)), clips, indices)


def _draw(lines, clips, indices) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, length, height, width, _ = clips.shape
    scale = min(1.0, (_MAX_WIDTH / length - _GAP) / width)
    height, width = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
    row = _HEAD + max(height + _GAP, 14 * (1 + max(text.count("\n") for text in lines)))
    longest = max(num_letters(line) for text in lines for line in text.split("\n"))
    margin = min(_MAX_MARGIN, (longest + 1) * _LETTER)
    down, across, dpi = count * row + _GAP, margin + length * (width + _GAP), 100
    figure = Figure(figsize=(across / dpi, down / dpi), dpi=dpi)
    places = [(n, t, n * row + _HEAD, margin + t * (width + _GAP)) for n in range(count) for t in range(length)]
    for n, t, top, left in places:
        if t == 0:
            figure.text(_GAP / across, 1 - top / down, lines[n], va="top", size=8)
        if width >= 24:
            figure.text(left / across, 1 - (top - 4) / down, str(indices[n, t]), size=6, color="grey")
    agg = FigureCanvasAgg(figure)
    agg.draw()
    picture = np.array(agg.buffer_rgba())[..., :3]
    for n, t, top, left in places:
        if t == 0:
            picture[top : top + row - _HEAD, margin:] = 255  # removes the ends of long labels
        picture[top : top + height, left : left + width] = cv2.resize(
            clips[n, t], (width, height), interpolation=cv2.INTER_AREA
        )
    return picture


def encode_png(picture) -> bytes:
    """Returns a PNG file of `picture`, (y, x, 3) uint8 in RGB."""
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


if __name__ == "__main__":
    run_program(main)

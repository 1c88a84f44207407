"""Writes 60 short videos in five class folders, as people's own videos are: `python -m tests.own_videos DIR`.

The classes differ in motion alone. A disc moves over a still background, leaves the frame on one side and comes back on
the other. Its first position is drawn uniformly, so its position in every single frame is uniform in every class, and
one frame says nothing about the class. The files differ in codec, container, size, rate, rotation and name, the same in
all classes.

`python -m tests.own_videos DIR --long` also writes `DIR-long`: the same clips as a few long videos, joined without
encoding them again, and the list `train.csv` with `path,label,start,end`.
"""

import argparse
import csv
import fractions
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

# Class folder -> direction of the motion in (rows, columns). Two names differ in the side alone.
CLASSES = {
    "falls [down]": (1, 0),
    "moves left": (0, -1),
    "moves right": (0, 1),
    "rises (höher)": (-1, 0),
    "stands still": (0, 0),
}
CLIPS = 12  # of each class
NAMES = ("clip {}", "Übung {}", "[{}] take", "take, {} (copy)", "no#{}%20", "l'essai {}", "クリップ{}")


class Format(NamedTuple):
    """How a file is encoded. `height` and `width` are those of the frames that a player shows."""

    suffix: str
    codec: str
    height: int
    width: int
    rate: fractions.Fraction
    rotation: int = 0  # degrees, counter-clockwise, by which a player turns the frames
    options: tuple[tuple[str, str], ...] = ()


FORMATS = (
    Format(".mp4", "libx264", 240, 320, fractions.Fraction(25), 0, (("bf", "0"),)),
    Format(".mov", "libx264", 256, 144, fractions.Fraction(30000, 1001), 90, (("bf", "0"),)),
    Format(".mkv", "libx265", 180, 320, fractions.Fraction(24), 0, (("x265-params", "bframes=0:log-level=none"),)),
    Format(".webm", "libvpx-vp9", 192, 256, fractions.Fraction(30), 0, (("deadline", "realtime"), ("cpu-used", "8"))),
    Format(".avi", "mpeg4", 144, 176, fractions.Fraction(15), 0, (("qscale", "3"),)),
    Format(".mp4", "mpeg4", 160, 120, fractions.Fraction(20), 180, (("qscale", "3"),)),
)


def render(direction: tuple[int, int], height: int, width: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a clip, uint8 (frames, height, width, 3). The first frame does not depend on `direction`."""
    low, high = rng.uniform(20, 110, 3), rng.uniform(170, 255, 3)
    texture = cv2.resize(rng.uniform(-1, 1, (5, 7)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    background = low + 20 * texture[..., None]
    side = min(height, width)
    radius, share = side * rng.uniform(0.14, 0.18), rng.uniform(0.8, 1.1)  # the share of the frame that it crosses
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot(rows - height // 2, columns - width // 2) < radius
    start = np.array([rng.integers(height), rng.integers(width)])
    clip = np.empty((frames, height, width, 3), np.uint8)
    for i in range(frames):
        shift = start + np.round(np.array(direction) * share * (height, width) * i / (frames - 1)).astype(int)
        clip[i] = np.where(np.roll(disc, shift, (0, 1))[..., None], high, background).clip(0, 255)
    return clip


def encode(path: Path, form: Format, clip: np.ndarray) -> None:
    """Writes the frames of a clip as a player shows them."""
    stored = np.rot90(clip, -form.rotation // 90, axes=(1, 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(form.codec, rate=form.rate, options=dict(form.options))
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *stored.shape[1:3], "yuv420p", 12
        if form.rotation:
            stream.set_display_rotation(form.rotation)
        for number, image in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_set(folder: str | Path, clips: int = CLIPS, seed: int = 0) -> list[tuple[Path, str]]:
    """Writes `clips` videos of each class below `folder`. Returns their paths and classes."""
    written = []
    for label, direction in CLASSES.items():
        (Path(folder) / label).mkdir(parents=True)
        for number in range(clips):
            rng = np.random.default_rng([seed, list(CLASSES).index(label), number])
            form, name = FORMATS[number % len(FORMATS)], NAMES[number % len(NAMES)].format(number)
            seconds = rng.uniform(1.6, 2.4)
            path = Path(folder) / label / f"{name}{form.suffix}"
            encode(path, form, render(direction, form.height, form.width, round(seconds * form.rate), rng))
            written.append((path, label))
    return written


def write_long(folder: str | Path, videos: list[tuple[Path, str]], clips: int = CLIPS) -> list[tuple[Path, str]]:
    """Joins the videos of each format into a long one in `folder`, and writes `train.csv`.

    Args:
        folder: a new folder.
        videos: what `write_set` returned.
        clips: videos of each class.

    Returns:
        `videos` in the order of the lines of the list.
    """
    Path(folder).mkdir(parents=True)
    order, rows = [], [("path", "label", "start", "end")]
    for number, form in enumerate(FORMATS):
        members = [videos[i] for i in range(len(videos)) if i % clips % len(FORMATS) == number]
        name = f"long, {number}{form.suffix}"
        parts = _join(Path(folder) / name, form, [path for path, _ in members]) if members else []
        order += members
        rows += [(name, label, start, end) for (_, label), (start, end) in zip(members, parts, strict=True)]
    with open(Path(folder) / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return order


def _join(path: Path, form: Format, videos: list[Path]) -> list[tuple[float, float]]:
    """Writes the packets of all videos into one file. Returns the start and end of each in seconds.

    They lie halfway between two frames, so that rounding moves no frame to another part.
    """
    parts, begin = [], 0  # in frames
    with av.open(str(path), "w") as container:
        stream = None
        for video in videos:
            with av.open(str(video)) as source:
                (track,) = source.streams.video
                if stream is None:
                    stream = container.add_stream_from_template(track)
                    if form.rotation:
                        stream.set_display_rotation(form.rotation)
                packets = [packet for packet in source.demux(track) if packet.size]
                for number, packet in enumerate(packets):  # without B-frames, so in the order of the times
                    packet.stream, packet.time_base = stream, 1 / form.rate
                    packet.pts = packet.dts = begin + number
                    packet.duration = 1
                    container.mux(packet)
            ends = (max(begin - 0.5, 0), begin + len(packets) - 0.5)
            parts.append(tuple(round(float(end / form.rate), 4) for end in ends))
            begin += len(packets)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a new folder for the videos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="also join them in FOLDER-long")
    options = parser.parse_args()
    videos = write_set(options.folder, seed=options.seed)
    if options.long:
        write_long(f"{options.folder}-long", videos)


if __name__ == "__main__":
    main()

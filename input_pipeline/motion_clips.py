"""Motion clips: a small labelled video data set, rendered on the spot, that only the order of frames tells.

A handwritten digit (8x8 scans shipped with scikit-learn) moves over a drifting texture under a shaking, noisy
camera. The ten classes are five pairs: a clip of one class played backwards is a clip of its partner. Every
clip is stored beside its exact reversal, in training and validation alike. Every frame is coded by itself at
a constant quantiser, so the two files decode to the same frames, bit for bit, in opposite orders: a model
that ignores order names at most half of them.
"""

import csv
import dataclasses
import fcntl
import json
import multiprocessing
import os
import secrets
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.workers import start_pool_process

CLASSES = (
    "slide left",
    "slide right",
    "slide up",
    "slide down",
    "grow",
    "shrink",
    "turn clockwise",
    "turn anticlockwise",
    "appear",
    "vanish",
)
REVERSED = {label: label ^ 1 for label in range(10)}  # the label of a clip played backwards
MIRRORED = {label: label ^ (label in (0, 1, 6, 7)) for label in range(10)}  # left and right swapped

MANIFEST = "motion_clips.json"
FORMAT = 1  # raise it when the same spec would render other frames
X264 = {  # every frame a key frame, its coded form independent of the frames around it
    "preset": "veryfast",
    "x264-params": "qp=28:keyint=1:bframes=0:scenecut=0:aq-mode=0:mbtree=0:rc-lookahead=0:threads=1",
}


@dataclasses.dataclass(frozen=True)
class MotionClips:
    """What to render; equal specs give equal frames.

    A pair is a clip and its reversal; the five pairs of classes take turns. `size` is a frame's side in
    pixels. DataError for values that cannot be rendered, or that leave the classes out of balance.
    """

    train_pairs: int = 2000
    val_pairs: int = 250
    seed: int = 0
    size: int = 64
    frames: int = 40
    fps: int = 25

    def __post_init__(self):
        if min(self.train_pairs, self.val_pairs) < 5 or self.train_pairs % 5 or self.val_pairs % 5:
            raise DataError(f"train_pairs and val_pairs must be positive multiples of 5; got {self}.")
        if self.seed < 0 or self.size < 16 or self.size % 2 or self.frames < 2 or self.fps < 1:
            raise DataError(f"seed must be >= 0, size even and >= 16, frames >= 2, fps >= 1; got {self}.")


def _trajectory(label, steps, rng):
    """Where the digit is: x, y, side, angle, opacity, each float32 (steps,).

    x and y are the centre's offset from the frame's (rightwards, downwards) and, like side, in units of the
    frame's side; angle is in radians, clockwise. Every draw is distributed alike for a class and its partner.
    """
    linear = np.linspace(0, 1, steps)
    progress = linear + rng.uniform(-0.1, 0.1) * np.sin(2 * np.pi * linear)  # eased alike at both ends
    if label % 2:
        progress = 1 - progress
    x, y = rng.uniform(-0.05, 0.05, 2)
    side, angle, opacity = rng.uniform(0.5, 0.6), 0.0, 1.0
    motion = CLASSES[label - label % 2]
    if motion == "slide left":
        x = x - rng.uniform(0.42, 0.54) * (progress - 0.5)
    elif motion == "slide up":
        y = y - rng.uniform(0.42, 0.54) * (progress - 0.5)
    elif motion == "grow":
        side = rng.uniform(0.65, 0.8) * rng.uniform(2, 2.5) ** (progress - 1)
    elif motion == "turn clockwise":  # about a point at its foot: a 0 or an 8 turning in place is ambiguous
        # From one side over the top to the other: from a start anywhere, small models need far more clips to learn.
        angle = np.radians(rng.uniform(-40, 40) + rng.uniform(120, 200) * (progress - 0.5))
        x, y = x + 0.4 * side * np.sin(angle), y - 0.4 * side * np.cos(angle)
    else:
        opacity = 0.1 + 0.9 * progress
    return np.float32(np.broadcast_arrays(x, y, side, angle, opacity))


def render_frames(label, digit, seed, size=64, frames=40):
    """One clip of class `label`, uint8 (frames, size, size, 3), RGB.

    `digit` is a grey scan, float (8, 8) between 0 and 16; `seed` whatever `numpy.random.default_rng` takes.
    """
    return np.stack(
        [
            np.clip(scene + alpha * (ink - scene) + noise, 0, 255).astype(np.uint8)
            for scene, alpha, ink, noise in _layers(label, digit, seed, size, frames)
        ]
    )


def digit_opacity(index, spec=MotionClips()):
    """Where the digit is in the validation clip of this index: its opacity in each frame, (frames, size, size)."""
    label, digit = _subject(index // 2, split_digits(spec.seed)[1])
    layers = list(_layers(label, digit, [spec.seed, 1, index // 2], spec.size, spec.frames))
    return np.stack([alpha[..., 0] for _, alpha, *_ in (layers[::-1] if index % 2 else layers)])


def _layers(label, digit, seed, size, frames):
    """Of each frame the background, the digit's opacity and colour, and the camera's noise."""
    rng = np.random.default_rng(seed)
    x, y, side, angle, opacity = _trajectory(label, frames, rng)

    detail = 64  # the digit drawn large once, with an empty rim so that its edges blend
    glyph = np.pad(np.float32(digit / 16), 1)
    glyph = np.clip(2 * cv2.resize(glyph, (detail, detail), interpolation=cv2.INTER_CUBIC) - 0.5, 0, 1)
    ink = np.float32(255 - rng.uniform(0, 70, 3) * rng.permutation([0, 0.5, 1]))  # bright, with a tint

    texture = rng.uniform(-1, 1, (9, 9, 1)) * 35 + rng.uniform(-1, 1, (9, 9, 3)) * 20 + rng.uniform(70, 100)
    texture = cv2.resize(np.float32(texture), (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC)

    heading, drift = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.15) * size  # pixels over the whole clip
    travelled = np.linspace(-0.5, 0.5, frames) * drift
    shake = rng.uniform(-1, 1, (frames, 2)) * size / 64
    noise = 4 * rng.standard_normal((frames, size, size, 1), np.float32)

    for t in range(frames):
        middle = (size - 1) / 2 + shake[t]
        slip = middle + travelled[t] * np.array([np.cos(heading), np.sin(heading)])
        turn = (
            side[t]
            * size
            / detail
            * np.array([[np.cos(angle[t]), -np.sin(angle[t])], [np.sin(angle[t]), np.cos(angle[t])]])
        )
        place = middle + size * np.array([x[t], y[t]])
        scene = _warp(texture, np.eye(2), slip, size)
        alpha = opacity[t] * _warp(glyph, turn, place, size)[..., None]
        yield scene, alpha, ink, noise[t]


def _warp(image, linear, centre, size):
    """`image` under the 2x2 map `linear`, its centre landing on pixel `centre` (x, y) of a square frame."""
    own = (np.array(image.shape[1::-1]) - 1) / 2
    return cv2.warpAffine(image, np.column_stack([linear, centre - linear @ own]), (size, size))


def split_digits(seed):
    """The scans for training clips and those for validation clips, float (n, 8, 8) each, none in both."""
    from sklearn.datasets import load_digits  # a second to import, and only needed to render

    scans = np.random.default_rng(seed).permutation(np.unique(load_digits().images, axis=0))
    held_out = len(scans) // 5
    return scans[held_out:], scans[:held_out]


def _write_clip(path, clip, fps):
    """Writes uint8 RGB (t, y, x, 3) as an H.264 MP4 at `fps` frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _render_pair(task):
    """Renders a clip and writes it and its reversal."""
    folder, spec, split, index, label, digit = task
    clip = render_frames(label, digit, [spec.seed, split, index], spec.size, spec.frames)
    _write_clip(folder / f"{2 * index:06d}.mp4", clip, spec.fps)
    _write_clip(folder / f"{2 * index + 1:06d}.mp4", clip[::-1], spec.fps)


def _render(folder, spec, workers):
    """Renders the whole data set into the empty `folder`."""
    tasks = []
    for split, (name, pairs, digits) in enumerate(
        zip(("train", "val"), (spec.train_pairs, spec.val_pairs), split_digits(spec.seed), strict=True)
    ):
        (folder / name).mkdir()
        rows = []
        for index in range(pairs):
            label, digit = _subject(index, digits)
            tasks.append((folder / name, spec, split, index, label, digit))
            rows += [(f"{name}/{2 * index:06d}.mp4", label), (f"{name}/{2 * index + 1:06d}.mp4", REVERSED[label])]
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "label"), *rows])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    if workers == 1:
        for task in tasks:
            _render_pair(task)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_pool_process) as pool:
            list(pool.map(_render_pair, tasks, chunksize=8))
    (folder / MANIFEST).write_text(json.dumps(_manifest(spec), indent=1) + "\n")


def _subject(index, digits):
    """Label and scan of the pair of this index: partners take turns at being the one played backwards, and each digit
    is in every motion."""
    return 2 * (index % 5) + index // 5 % 2, digits[index // 5 % len(digits)]


def _manifest(spec):
    return {"format": FORMAT, **dataclasses.asdict(spec)}


def _is_rendered(root, spec):
    """Whether `root` holds this data set; False where nothing is yet, DataError where something else is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        raise DataError(f"{root} is not a motion-clips folder, nor empty; choose another.") from None
    if found != _manifest(spec):
        raise DataError(f"{root} holds motion clips of another spec, {found}; choose another folder.")
    return True


def ensure(root, spec=MotionClips(), report=print, workers=None):
    """Renders the data set into the folder `root` unless it is already there, and returns `root` as a Path.

    Afterwards `root` holds train.csv and val.csv (header path,label; paths relative to `root`), classes.txt,
    the clips in train/ and val/, and motion_clips.json. It appears whole or not at all; a second caller waits
    for the first. `report` takes a line at the start and one at the end. `workers` processes are spawned to
    render (default: one a core, at most 8; with 1, this process renders), so a script needs the guard
    `if __name__ == "__main__"`. DataError where `root` is something else (it is kept) or cannot be written.
    """
    root = Path(root).absolute()
    try:
        if _is_rendered(root, spec):
            return root
        root.parent.mkdir(parents=True, exist_ok=True)
        with open(root.parent / f".{root.name}.lock", "w") as lock:  # the system frees it if we are killed
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_rendered(root, spec):
                _publish(root, spec, report, workers or min(8, os.cpu_count()))
    except OSError as error:
        raise DataError(f"Cannot render motion clips into {root}: {error}.") from error
    return root


def _publish(root, spec, report, workers):
    """Renders beside `root`, then renames; under the lock, any other rendering folder has no owner."""
    prefix = f".{root.name}.rendering-"
    for stale in root.parent.iterdir():
        if stale.name.startswith(prefix):
            shutil.rmtree(stale, ignore_errors=True)
    clips, start = 2 * (spec.train_pairs + spec.val_pairs), time.monotonic()
    report(f"Rendering {clips} motion clips into {root}")
    staging = root.parent / f"{prefix}{secrets.token_hex(4)}"  # dying workers may still write to an old one
    staging.mkdir()
    try:
        _render(staging, spec, workers)
        staging.rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report(f"Rendered {clips} motion clips in {time.monotonic() - start:.0f} s")

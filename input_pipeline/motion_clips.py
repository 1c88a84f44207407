"""Motion clips: a small labelled video data set, rendered locally, whose classes differ only in the order of frames.

A handwritten digit (8x8 scans shipped with scikit-learn) moves over a drifting texture under a shaking, noisy camera.
The ten classes are five pairs: a clip of one class played backwards is a clip of its partner. Every clip is stored
beside its exact reversal, in training and validation alike. Every frame is coded independently at a constant quantiser,
so that the two files decode to the same frames, bit for bit, in opposite orders. A model that ignores the order
classifies at most half of the clips correctly.
"""

import csv
import dataclasses
import json
import os
import time
from pathlib import Path

import av
import cv2
import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.files import atomic_folder
from input_pipeline.json_files import JsonError, read_json
from input_pipeline.outputs import beside, locked
from input_pipeline.workers import decoding_pool

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
FORMAT = 1  # to be increased when the same spec would render other frames
X264 = {  # every frame is a keyframe, and its coded form does not depend on other frames
    "preset": "veryfast",
    "x264-params": "qp=28:keyint=1:bframes=0:scenecut=0:aq-mode=0:mbtree=0:rc-lookahead=0:threads=1",
}


@dataclasses.dataclass(frozen=True)
class MotionClips:
    """The specification of a data set of motion clips. Equal specs give equal frames.

    Attributes:
        train_pairs, val_pairs: number of pairs of a clip and its reversal, a multiple of 5. Consecutive pairs are of
            different pairs of classes.
        seed: seed of all random draws.
        size: pixels, side of a frame.
        frames: frames per clip.
        fps: frames per second.

    Raises:
        DataError: the values cannot be rendered, or leave the classes unbalanced.
    """

    train_pairs: int = 2000
    val_pairs: int = 250
    seed: int = 0
    size: int = 64
    frames: int = 40
    fps: int = 25

    def __post_init__(self):
        if min(self.train_pairs, self.val_pairs) < 5 or self.train_pairs % 5 or self.val_pairs % 5:
            raise DataError(f"train_pairs and val_pairs must be positive multiples of 5, but the spec is {self}.")
        if self.seed < 0 or self.size < 16 or self.size % 2 or self.frames < 2 or self.fps < 1:
            raise DataError(
                f"seed must be >= 0, size even and >= 16, frames >= 2 and fps >= 1, but the spec is {self}."
            )


def _trajectory(label, steps, rng):
    """Returns x, y, side, angle and opacity of the digit, each float32 (steps,).

    x (rightwards) and y (downwards) are the offset of the centre of the digit from the centre of the frame. x, y and
    side are in units of the side of the frame. angle is in radians, clockwise. A class and its partner have the same
    distribution of every draw.
    """
    linear = np.linspace(0, 1, steps)
    progress = linear + rng.uniform(-0.1, 0.1) * np.sin(2 * np.pi * linear)  # symmetric in time
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
    elif motion == "turn clockwise":
        # The digit turns about a point at its foot: a 0 or an 8 that turns in place is ambiguous. It moves from one
        # side over the top to the other: with a random start angle, small models need far more clips to learn.
        angle = np.radians(rng.uniform(-40, 40) + rng.uniform(120, 200) * (progress - 0.5))
        x, y = x + 0.4 * side * np.sin(angle), y - 0.4 * side * np.cos(angle)
    else:
        opacity = 0.1 + 0.9 * progress
    return np.float32(np.broadcast_arrays(x, y, side, angle, opacity))


def render_frames(label, digit, seed, size=64, frames=40):
    """Returns one clip, uint8 (frames, size, size, 3), RGB.

    Args:
        label: class of the clip.
        digit: grey scan, float (8, 8) from 0 to 16.
        seed: seed for `numpy.random.default_rng`.
        size: pixels, side of a frame.
        frames: frames of the clip.
    """
    return np.stack(
        [
            np.clip(background + alpha * (colour - background) + noise, 0, 255).astype(np.uint8)
            for background, alpha, colour, noise in _layers(label, digit, seed, size, frames)
        ]
    )


def digit_opacity(index, spec=MotionClips()):
    """Returns the opacity of the digit at each pixel of a validation clip, (frames, size, size)."""
    label, digit = _subject(index // 2, split_digits(spec.seed)[1])
    layers = list(_layers(label, digit, [spec.seed, 1, index // 2], spec.size, spec.frames))
    return np.stack([alpha[..., 0] for _, alpha, *_ in (layers[::-1] if index % 2 else layers)])


def _layers(label, digit, seed, size, frames):
    """Yields for each frame the background, the opacity and the colour of the digit, and the noise of the camera."""
    rng = np.random.default_rng(seed)
    x, y, side, angle, opacity = _trajectory(label, frames, rng)

    detail = 64  # pixels, side of the digit before it is warped, with an empty rim so that its edges blend
    glyph = np.pad(np.float32(digit / 16), 1)
    glyph = np.clip(2 * cv2.resize(glyph, (detail, detail), interpolation=cv2.INTER_CUBIC) - 0.5, 0, 1)
    colour = np.float32(255 - rng.uniform(0, 70, 3) * rng.permutation([0, 0.5, 1]))  # bright, with a tint

    texture = rng.uniform(-1, 1, (9, 9, 1)) * 35 + rng.uniform(-1, 1, (9, 9, 3)) * 20 + rng.uniform(70, 100)
    texture = cv2.resize(np.float32(texture), (2 * size, 2 * size), interpolation=cv2.INTER_CUBIC)

    heading, drift = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.15) * size  # pixels over the whole clip
    travelled = np.linspace(-0.5, 0.5, frames) * drift
    shake = rng.uniform(-1, 1, (frames, 2)) * size / 64
    noise = 4 * rng.standard_normal((frames, size, size, 1), np.float32)

    for t in range(frames):
        centre = (size - 1) / 2 + shake[t]
        texture_centre = centre + travelled[t] * np.array([np.cos(heading), np.sin(heading)])
        transform = (
            side[t]
            * size
            / detail
            * np.array([[np.cos(angle[t]), -np.sin(angle[t])], [np.sin(angle[t]), np.cos(angle[t])]])
        )
        glyph_centre = centre + size * np.array([x[t], y[t]])
        background = _warp(texture, np.eye(2), texture_centre, size)
        alpha = opacity[t] * _warp(glyph, transform, glyph_centre, size)[..., None]
        yield background, alpha, colour, noise[t]


def _warp(image, linear, centre, size):
    """Maps `image` by the 2x2 matrix `linear` to a square frame, its centre to the pixel `centre` (x, y)."""
    image_centre = (np.array(image.shape[1::-1]) - 1) / 2
    return cv2.warpAffine(image, np.column_stack([linear, centre - linear @ image_centre]), (size, size))


def split_digits(seed):
    """Returns the scans for training clips and those for validation clips, float (n, 8, 8) each, disjoint."""
    from sklearn.datasets import load_digits  # takes a second to import, and only rendering needs it

    scans = np.random.default_rng(seed).permutation(np.unique(load_digits().images, axis=0))
    held_out = len(scans) // 5
    return scans[held_out:], scans[:held_out]


def _write_clip(path, clip, fps):
    """Writes uint8 RGB (t, y, x, 3) as an H.264 MP4 at `fps` frames per second."""
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
        with decoding_pool(workers) as pool:
            list(pool.map(_render_pair, tasks, chunksize=8))  # list() raises the errors of the workers
    (folder / MANIFEST).write_text(json.dumps(_manifest(spec), indent=1) + "\n")


def _subject(index, digits):
    """Returns the label and the scan of the pair with this index.

    The two classes of a pair take turns as the class that is rendered forwards. Each digit shows every motion.
    """
    return 2 * (index % 5) + index // 5 % 2, digits[index // 5 % len(digits)]


def _manifest(spec):
    return {"format": FORMAT, **dataclasses.asdict(spec)}


def _is_rendered(root, spec):
    """Returns whether `root` holds this data set, or False if it does not exist or is empty.

    Raises:
        DataError: `root` holds other files.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        manifest = read_json(root / MANIFEST)
    except (OSError, JsonError):
        raise DataError(
            f"{root} is neither empty nor a folder of motion clips. Set data.root to another folder."
        ) from None
    if manifest != _manifest(spec):
        raise DataError(f"{root} holds motion clips of another spec, {manifest}. Set data.root to another folder.")
    return True


def ensure(root, spec=MotionClips(), report=print, workers=None) -> Path:
    """Renders the data set into the folder `root` unless it is already there.

    Afterwards `root` holds train.csv and val.csv (header path,label; paths relative to `root`), classes.txt, the clips
    in train/ and val/, and motion_clips.json. The folder appears complete or not at all. A second caller waits for the
    first.

    Args:
        root: the folder, which does not exist, is empty, or holds this data set.
        spec: the data set to render.
        report: called with one line at the start of rendering and one at the end.
        workers: processes that render. None: one per core, at most 8. With 1, this process renders. More processes are
            spawned, so a script needs the guard `if __name__ == "__main__"`.

    Returns:
        `root`, absolute.

    Raises:
        DataError: `root` holds other files, which are not changed, or cannot be written.
    """
    root = Path(root).absolute()
    try:
        if _is_rendered(root, spec):
            return root
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(beside(root)):
            if not _is_rendered(root, spec):
                clips, start = 2 * (spec.train_pairs + spec.val_pairs), time.monotonic()
                report(f"Rendering {clips} motion clips into {root}")
                with atomic_folder(root) as folder:
                    _render(folder, spec, workers or min(8, os.cpu_count() or 1))
                report(f"Rendered {clips} motion clips in {time.monotonic() - start:.0f} s")
    except OSError as error:
        raise DataError(f"Cannot render motion clips into {root}: {error}.") from error
    return root

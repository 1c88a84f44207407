"""Damaged videos of six codecs: each decodes, or is a DecodeError that names the file."""

import random
from pathlib import Path

import av
import numpy as np

from benchmarks.campaign import damage
from input_pipeline import Record
from input_pipeline.errors import DecodeError
from input_pipeline.sampling import Uniform
from input_pipeline.videos import open_video

COUNT, SECONDS, BYTES = 300, 60.0, 2**30
_CODECS = {
    "h264": ("libx264", ".mp4"),
    "hevc": ("libx265", ".mkv"),
    "vp9": ("libvpx-vp9", ".webm"),
    "av1": ("libsvtav1", ".mp4"),
    "mpeg4": ("mpeg4", ".avi"),
    "mpeg2": ("mpeg2video", ".ts"),
}
_FRAMES, _SIZE = 60, (128, 160)


def case_set(number: int) -> str:
    return list(_CODECS)[number % len(_CODECS)]


def prepare(folder: Path) -> None:
    for codec, (encoder, suffix) in _CODECS.items():
        path = folder / f"{codec}{suffix}"
        if not path.exists():
            partial = folder / f"partial{suffix}"
            _write(partial, encoder)
            partial.rename(path)


def run_case(number: int, folder: Path) -> dict:
    rng, codec = random.Random(number), case_set(number)
    source = folder / f"{codec}{_CODECS[codec][1]}"
    kind = damage.KINDS[number // len(_CODECS) % len(damage.KINDS)]
    path = folder / f"damaged{source.suffix}"
    path.write_bytes(kind(source.read_bytes(), rng))
    sampler = Uniform(8)
    try:
        video = open_video(Record(id=0, path=str(path), label=0, line=1), frame_rate=30.0, limit_seconds=30.0)
        index = sampler.train(video.times, video.duration, np.random.default_rng(number))
        frames = video.frames(index)
    except DecodeError as error:
        is_sentence = path.name in str(error) and "\n" not in str(error)
        return {"outcome": "DecodeError" if is_sentence else f"no sentence: {error}", "failed": not is_sentence}
    fits = frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) == 8 and frames.shape[3] == 3
    return {"outcome": "decoded" if fits else f"decoded as {frames.dtype} {frames.shape}", "failed": not fits}


def _write(path: Path, encoder: str) -> None:
    """Writes a video of moving noise."""
    rng, (height, width) = np.random.default_rng(0), _SIZE
    noise = rng.integers(0, 256, (height, 2 * width, 3), np.uint8)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}  # truncated files keep their index
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(encoder, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(_FRAMES):
            picture = np.ascontiguousarray(noise[:, 2 * frame : 2 * frame + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())

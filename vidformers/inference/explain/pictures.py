"""Draws relevance maps: heat maps over frames, videos, and line plots."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np

_MIN_SIDE = 112  # pixels; smaller frames are enlarged
_FRAME_RATE = 8  # frames per second of a video


def overlay(frames, maps) -> np.ndarray:
    """Returns frames with heat maps drawn over them, red where a map is high.

    Args:
        frames: uint8 (t y x 3).
        maps: (t' y' x'). t' divides t, and each map covers t / t' frames. All are divided by their common maximum.
    Returns:
        uint8 (t y x 3).
    """
    maps = np.repeat(np.asarray(maps, np.float32), len(frames) // len(maps), axis=0)
    top = maps.max()
    out = []
    for image, heat in zip(frames, maps / top if top > 0 else maps, strict=True):
        heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
        colour = cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET)[..., ::-1]
        out.append((image * (1 - 0.6 * heat) + colour * 0.6 * heat).astype(np.uint8))
    return np.stack(out)


def enlarged(frames) -> np.ndarray:
    """Returns frames (t y x 3) enlarged by a whole factor so that each side has at least 112 pixels."""
    factor = max(1, -(-_MIN_SIDE // frames.shape[1]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def encode_mp4(frames) -> bytes:
    """Returns frames uint8 (t y x 3) as an MP4 file. The format needs even sides, so an odd side loses one pixel."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FRAME_RATE, options={"crf": "18", "x264-params": "threads=1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.time_base = Fraction(1, _FRAME_RATE)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def draw_lines(lines, xlabel: str, ylabel: str) -> bytes:
    """Returns a line plot as a PNG file.

    Args:
        lines: name -> values, drawn at x = 1, 2, .... A legend is drawn if there are several lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()

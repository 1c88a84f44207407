"""Pictures of relevance: strips of frames, a video, curves."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np

_SIDE = 112  # pixels at least that a frame is drawn with
_RATE = 8  # frames a second of a video


def overlay(frames, maps) -> np.ndarray:
    """Frames uint8 (t y x 3) under maps (t' y' x'), red where these are high: uint8 (t y x 3).

    A map stands for the t / t' frames of its patches; all are scaled by their highest value.
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
    """Frames uint8 (t y x 3), small ones in whole multiples."""
    factor = max(1, -(-_SIDE // frames.shape[1]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def encode_mp4(frames) -> bytes:
    """Frames uint8 (t y x 3) as a video; an odd side loses its last pixel, which the format has no place for."""
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"crf": "18", "x264-params": "threads=1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.time_base = Fraction(1, _RATE)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def draw_lines(lines, across: str, up: str) -> bytes:
    """Lines of numbers by name, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set(xlabel=across, ylabel=up, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()

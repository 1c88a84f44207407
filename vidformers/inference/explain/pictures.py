"""Draws relevance maps: heat maps over frames, videos, line plots, and weights of frames above thumbnails."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np

from input_pipeline.figures import drawn_texts, shortened

_MIN_SIDE = 112  # pixels; smaller frames are enlarged
_FRAME_RATE = 8  # frames per second of a video
_MAX_THUMBNAILS = 12
_MAX_TITLE = 120  # letters


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
    with drawn_texts([xlabel, ylabel, *lines]) as texts:
        return encode_figure(_lines(list(lines.values()), *map(shortened, texts)))


def _lines(lines, xlabel: str, ylabel: str, *names: str):
    """Returns the figure of `draw_lines`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in zip(names, lines, strict=True):
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return figure


def draw_strip(weights, frames, index, title: str) -> bytes:
    """Returns a PNG file with the weights of all frames above evenly spaced thumbnails (VTN).

    Args:
        weights: (h t), drawn as one thin line for each head and a thick line for the mean.
        frames: uint8 (t y x 3).
        index: (t), the numbers of the frames, written below the thumbnails.
        title: a text above the picture.
    """
    with drawn_texts([title]) as texts:
        return encode_figure(_strip(weights, frames, index, shortened(texts[0], _MAX_TITLE)))


def _strip(weights, frames, index, title: str):
    """Returns the figure of `draw_strip`."""
    from matplotlib.figure import Figure

    count, length = min(len(frames), _MAX_THUMBNAILS), len(frames)
    chosen = np.linspace(0, length - 1, count).round().astype(int)
    figure = Figure(figsize=(10, 3.4))
    # The thumbnails fill the width side by side, and the middle of each one is below its point of the lines.
    left, width = 0.07, 0.91
    gap = (length - 1) / (count - 1) if count > 1 else 1
    axes = figure.add_axes((left, 0.46, width, 0.44))
    heads = axes.plot(weights.T, color="silver", linewidth=0.8)
    marker = "o" if length <= 64 else None
    mean = axes.plot(weights.mean(axis=0), color="tab:blue", linewidth=2, marker=marker, markersize=4)
    axes.legend([mean[0], heads[0]], ["mean", "one head"], fontsize=7, frameon=False, loc="upper right", ncols=2)
    axes.vlines(chosen, 0, weights.mean(axis=0)[chosen], color="tab:blue", alpha=0.3, linewidth=0.8)
    axes.set(xlim=(-gap / 2, length - 1 + gap / 2), ylim=(0, None), xticks=[])
    axes.tick_params(labelsize=7)
    axes.set_title(title, size=9, loc="left")
    for place, frame in enumerate(chosen):
        tile = figure.add_axes((left + width * (place + 0.02) / count, 0.1, 0.96 * width / count, 0.34))
        tile.imshow(frames[frame])
        tile.set_axis_off()
        tile.set_anchor("N")
        tile.text(0.5, -0.04, str(index[frame]), size=7, color="grey", ha="center", va="top", transform=tile.transAxes)
    return figure


def encode_figure(figure, dpi: int = 120) -> bytes:
    """Returns a figure of matplotlib as a PNG file, with `dpi` pixels per inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()

"""Margins that a container cuts off: the clean aperture of MP4 and MOV files, and the cropping of Matroska files.

FFmpeg's decoders cut off the margins that the stream itself names. Those of the container are left to the player.
"""

import re
import struct
from typing import NamedTuple

import av
from av.filter import Graph


class Margins(NamedTuple):
    """Pixels as stored that are not shown."""

    left: int
    right: int
    top: int
    bottom: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the (width, height) of what is shown. Margins that leave less than 4 pixels are ignored."""
        shown = width - self.left - self.right, height - self.top - self.bottom
        return shown if min(shown) >= 4 else (width, height)


NO_MARGINS = Margins(0, 0, 0, 0)

# PyAV 18 has no access to these data but the description of the file, which ffmpeg prints. Lines of titles and other
# text begin otherwise.
_DESCRIBED = re.compile(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", re.MULTILINE)
_FORMATS = ("mov,", "matroska,")
_SAMPLES = 16  # of luma, of which a format has at least one of chroma


def container_margins(container, stream) -> Margins:
    """Returns the margins of a video stream of PyAV that its container cuts off."""
    if hasattr(stream.codec_context, "coded_side_data"):
        data = stream.codec_context.coded_side_data.get("frame_cropping")
        if data is None:
            return NO_MARGINS
        top, bottom, left, right = struct.unpack("=4I", bytes(data)[:16])
        return Margins(left, right, top, bottom)
    if not container.format.name.startswith(_FORMATS):
        return NO_MARGINS
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # the description is a log of FFmpeg, which PyAV returns
    try:
        described = container.dumps_format()
    finally:
        av.logging.set_level(level)
    _, *streams = re.split(r"^ +Stream #0:", described, flags=re.MULTILINE)
    found = next((_DESCRIBED.search(text) for text in streams if re.match(rf"{stream.index}\b", text)), None)
    return Margins(*map(int, found.groups())) if found else NO_MARGINS


class Crop:
    """Cuts the margins off frames, without a copy."""

    def __init__(self, margins: Margins):
        self._margins, self._graph, self._input = margins, None, None

    def size(self, width: int, height: int, frame) -> tuple[int, int]:
        """Returns the (width, height) of what is shown of frames of a size, in the pixel format of `frame`.

        A row or column that shares its samples of chroma with one that is cut off is cut off too, as by ffmpeg.
        """
        shown = self._margins.size(width, height)
        if shown == (width, height):
            return shown
        format = frame.format
        columns, rows = _SAMPLES // format.chroma_width(_SAMPLES), _SAMPLES // format.chroma_height(_SAMPLES)
        return shown[0] // columns * columns, shown[1] // rows * rows

    def __call__(self, frame):
        """Returns a frame of PyAV without the margins."""
        width, height = self.size(frame.width, frame.height, frame)
        if (width, height) == (frame.width, frame.height):
            return frame
        if (described := (frame.width, frame.height, frame.format.name)) != self._input:
            self._graph, self._input = Graph(), described
            source = self._graph.add(
                "buffer", f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
            )
            cut = self._graph.add("crop", f"{width}:{height}:{self._margins.left}:{self._margins.top}")
            source.link_to(cut)
            cut.link_to(self._graph.add("buffersink"))
            self._graph.configure()
        self._graph.push(frame)
        return self._graph.pull()

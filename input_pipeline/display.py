"""Showing: converts decoded frames to the images that a video player shows.

A player converts the colours, makes pixels square, and turns and mirrors the frames as the file demands. All frames of
a video get the size of its first frame.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from av.video.reformatter import ColorTrc, Interpolation

from input_pipeline.crop import NO_MARGINS, Crop, Margins
from input_pipeline.errors import DecodeError
from input_pipeline.orientation import Messages, Orientation, nearest_orientation

# Frames above this size are refused, because one frame in red, green and blue takes 3 bytes per pixel, and a decoder
# keeps up to 16 frames. 8K video has 35 million pixels.
MAX_PIXELS = 2**26

# Pixels whose width and height differ by more than this factor are a mistake in the file. Anamorphic video has factors
# up to 2, and video of any shape that was squeezed to 340 x 256 pixels for a data set has factors up to 3.
_MAX_ASPECT = 8

# The colour matrices that FFmpeg converts, by their number in ITU-T H.273. Any other, such as a reserved number, is
# read as if the file did not say. FFmpeg then takes the matrix of ITU-R BT.601 for every size of video, where mpv takes
# BT.709 for large frames. FFmpeg's choice is kept: published models learned from its colours.
_COLOUR_MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))
_UNSPECIFIED = 2
_COLOUR_RANGES = (0, 1, 2)  # unspecified, limited and full
_CONSTANT_LUMINANCE, _BT2020 = 10, 9  # a matrix that FFmpeg does not convert, and the one with the same coefficients

_HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
_INTERLACED = (2, 3, 4, 5)  # FFmpeg's AVFieldOrder: which field is stored first, and which is shown first


@dataclasses.dataclass(frozen=True)
class Info:
    """Properties of a video file.

    Attributes:
        codec: FFmpeg's name of the codec.
        width, height: pixels as stored, before they are made square, turned and mirrored.
        rotation: degrees counterclockwise by which players turn the frames: 0, 90, 180 or -90.
        audio: whether the file has an audio stream.
        mirrored: whether players swap left and right after the turn.
    """

    codec: str
    width: int
    height: int
    rotation: int
    audio: bool
    mirrored: bool = False


def stream_remarks(context) -> tuple[str, ...]:
    """Returns sentences on what players do to the frames of a stream and this package does not. Most streams have none.

    Args:
        context: codec context of PyAV.
    """
    hdr = _HDR.get(context.color_trc)
    remarks = (f"The video is HDR ({hdr}) and is read without tone mapping.",) if hdr else ()
    if context.field_order in _INTERLACED:
        remarks += ("The video is interlaced and is read without deinterlacing.",)
    return remarks


def _matrix_orientation(frame) -> Orientation | None:
    """Returns the orientation by the display matrix of a frame of PyAV, or None if it has no matrix."""
    _set_known_colours(frame)
    # A frame of PyAV whose side data were read stays in memory until the garbage collector runs, because both refer to
    # each other. A thumbnail has the same side data.
    thumbnail = frame.reformat(width=16, height=16, format="gray", interpolation=Interpolation.POINT, threads=1)
    try:
        data = _first_matrix(thumbnail.side_data)
    except ValueError:  # the frame also has side data of a kind that PyAV does not know
        degrees = {1: 90, -1: -90, 2: 180, -2: 180}.get(round(frame.rotation / 90))
        return Orientation(degrees, False) if degrees else None
    return None if data is None else nearest_orientation(bytes(data))


def _first_matrix(side_data):
    """Returns the first of the display matrices: that of the container, which ffmpeg prefers to that of the stream."""
    with contextlib.suppress(IndexError):
        for position in itertools.count():  # PyAV 18 and 19 iterate differently, and 19 over kinds of data
            if side_data[position].type.name == "DISPLAYMATRIX":
                return side_data[position]
    return None


class Display:
    """Converts the frames of one video to images, which all have the size of its first frame.

    Args:
        name: name of the video in errors.
        size: (width, height) of the first frame in pixels, as the container gives it. It may be wrong.
        aspect: width of a pixel divided by its height, or None if the file gives none.
        messages: the orientations of frames without a display matrix.
        margins: what the container cuts off.

    Raises:
        DecodeError: the frames are too large.
    """

    def __init__(self, name: str, size: tuple[int, int], aspect, messages: Messages, margins: Margins = NO_MARGINS):
        check_size(name, *size)
        self._name, self._aspect, self._messages, self._crop = name, aspect, messages, Crop(margins)
        self._size, self._is_verified, self._swaps_sides = size, False, None

    @property
    def is_size_known(self) -> bool:
        """Whether FFmpeg found the size of the frames when it opened the file."""
        return self._size != (0, 0)

    def image(self, frame, first_frame: Callable) -> np.ndarray:
        """Returns a frame as a player shows it.

        Args:
            frame: a frame of PyAV.
            first_frame: function that returns the first frame of the video, or an object with its `width` and `height`.
                It is called if `frame` has another size than the container gives.

        Returns:
            (y, x, 3) uint8, red, green, blue.

        Raises:
            DecodeError: the frames are too large.
        """
        if (frame.width, frame.height) != self._size and not self._is_verified:
            first = first_frame()
            self._size, self._is_verified = (first.width, first.height), True
        size = square_size(*self._crop.size(*self._size, frame), self._aspect)
        check_size(self._name, *size)
        frame = self._crop(frame)
        turn = self._orientation(frame)
        # A few files turn some of their frames only. All images get the shape of the first one.
        if self._swaps_sides is None:
            self._swaps_sides = turn.swaps_sides
        return turn.apply(_to_rgb(frame, size if turn.swaps_sides == self._swaps_sides else size[::-1]))

    def info(self, frame, codec: str, audio: bool) -> Info:
        """Returns the properties of the file from its first frame, a frame of PyAV."""
        frame = self._crop(frame)
        turn = self._orientation(frame)
        return Info(codec, frame.width, frame.height, turn.degrees, audio, turn.mirrored)

    def _orientation(self, frame):
        return _matrix_orientation(frame) or self._messages.at(frame.pts)


def check_size(name: str, width: int, height: int) -> None:
    """Raises DecodeError if frames of this size are too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"{name}: {width} x {height} pixels are more than the limit of {MAX_PIXELS / 1e6:.0f} million. Scale the "
            "video down with another program."
        )


def square_size(width: int, height: int, aspect) -> tuple[int, int]:
    """Returns the width and height of a frame whose pixels are made square.

    The side that must grow is scaled, as mpv, VLC and Chromium do, so that no detail is lost.

    Args:
        width, height: pixels as stored.
        aspect: width of a pixel divided by its height. None, 0 and ratios beyond 8 are ignored.
    """
    if not aspect or not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _set_known_colours(frame):
    """Replaces a colour matrix and a range that FFmpeg does not convert, see `_COLOUR_MATRICES`."""
    if frame.colorspace not in _COLOUR_MATRICES:
        frame.colorspace = _BT2020 if frame.colorspace == _CONSTANT_LUMINANCE else _UNSPECIFIED
    if frame.color_range not in _COLOUR_RANGES:
        frame.color_range = 0


def _to_rgb(frame, size):
    """Returns a frame of PyAV in the given (width, height), before it is turned: (y, x, 3) uint8."""
    _set_known_colours(frame)
    # Bicubic is ffmpeg's default.
    scaling = {}
    if size != (frame.width, frame.height):
        scaling = dict(width=size[0], height=size[1], interpolation=Interpolation.BICUBIC)
    # One thread: otherwise FFmpeg starts one thread per core for every frame, which costs ten times as much as
    # converting a small frame.
    (plane,) = frame.reformat(format="rgb24", threads=1, **scaling).planes
    # A view, which spares a copy of `to_ndarray`. The rows of the plane are padded.
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)

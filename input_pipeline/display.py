"""Showing: converts decoded frames to the images that a video player shows.

A player converts the colours, makes pixels square, and turns and mirrors the frames as the file demands. All frames of
a video get the size of its first frame.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from av.video.reformatter import ColorTrc, Interpolation

from input_pipeline.errors import DecodeError

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


def frame_info(frame, codec: str, audio: bool) -> Info:
    """Returns the properties of a file from its first frame, a frame of PyAV."""
    turn = orientation(frame)
    return Info(codec, frame.width, frame.height, turn.degrees, audio, turn.mirrored)


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


@dataclasses.dataclass(frozen=True)
class Orientation:
    """A turn by `degrees` counterclockwise (0, 90, 180 or -90), and then a swap of left and right if `mirrored`."""

    degrees: int
    mirrored: bool

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.degrees % 180 != 0

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """(2, 2): the point (x, y), with y downwards, moves to `matrix @ (x, y)`."""
        quarter_turn = np.array([[0, 1], [-1, 0]])
        turn = np.linalg.matrix_power(quarter_turn, self.degrees // 90 % 4)
        return np.diag([-1, 1]) @ turn if self.mirrored else turn

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Returns an image, (y, x, 3), as it is shown."""
        if self == _UPRIGHT:
            return image
        image = np.rot90(image, self.degrees // 90)
        return np.ascontiguousarray(image[:, ::-1] if self.mirrored else image)


_UPRIGHT = Orientation(0, False)
_ORIENTATIONS = tuple(Orientation(degrees, mirrored) for mirrored in (False, True) for degrees in (0, 90, 180, -90))


def orientation(frame) -> Orientation:
    """Returns the orientation that is nearest to the display matrix of a frame of PyAV.

    A matrix may also scale and shear, which is ignored. A matrix that maps all points onto a line or a point says
    nothing, and the frame is shown as stored, as ffmpeg does.
    """
    _set_known_colours(frame)
    # A frame of PyAV whose side data were read stays in memory until the garbage collector runs, because both refer to
    # each other. A thumbnail has the same side data.
    thumbnail = frame.reformat(width=16, height=16, format="gray", interpolation=Interpolation.POINT, threads=1)
    try:
        data = thumbnail.side_data.get("DISPLAYMATRIX")
    except ValueError:  # the frame also has side data of a kind that PyAV does not know
        return Orientation({1: 90, -1: -90, 2: 180, -2: 180}.get(round(frame.rotation / 90), 0), False)
    return _UPRIGHT if data is None else _nearest_orientation(bytes(data))


@functools.lru_cache
def _nearest_orientation(display_matrix):
    # ISO 14496-12: (x, y) moves to (a x + c y, b x + d y), with a, b at 0, 1 and c, d at 3, 4.
    matrix = np.frombuffer(display_matrix, np.int32)[[0, 3, 1, 4]].reshape(2, 2).astype(float)
    scale = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not scale.all() or abs(np.linalg.det(matrix / scale)) < 1e-3:
        return _UPRIGHT
    return max(_ORIENTATIONS, key=lambda candidate: np.sum(candidate.matrix * matrix / scale))


class Display:
    """Converts the frames of one video to images, which all have the size of its first frame.

    Args:
        name: name of the video in errors.
        size: (width, height) of the first frame in pixels, as the container gives it. It may be wrong.
        aspect: width of a pixel divided by its height, or None if the file gives none.

    Raises:
        DecodeError: the frames are too large.
    """

    def __init__(self, name: str, size: tuple[int, int], aspect):
        self._name, self._aspect = name, aspect
        self._size, self._is_verified, self._swaps_sides = size, False, None
        check_size(name, *size)

    @property
    def is_size_known(self) -> bool:
        """Whether FFmpeg found the size of the frames when it opened the file."""
        return self._size != (0, 0)

    def image(self, frame, first_frame: Callable) -> np.ndarray:
        """Returns a frame as a player shows it.

        Args:
            frame: a frame of PyAV.
            first_frame: function that returns the first frame of the video. It is called if `frame` has another size
                than the container gives.

        Returns:
            (y, x, 3) uint8, red, green, blue.

        Raises:
            DecodeError: the frames are too large.
        """
        if (frame.width, frame.height) != self._size and not self._is_verified:
            first = first_frame()
            self._size, self._is_verified = (first.width, first.height), True
        size = square_size(*self._size, self._aspect)
        check_size(self._name, *size)
        turn = orientation(frame)
        # A few files turn some of their frames only. All images get the shape of the first one.
        if self._swaps_sides is None:
            self._swaps_sides = turn.swaps_sides
        return turn.apply(_to_rgb(frame, size if turn.swaps_sides == self._swaps_sides else size[::-1]))


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

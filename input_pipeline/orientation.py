"""How a video player turns and mirrors frames: by display matrices, and by messages in H.264 and HEVC streams.

FFmpeg gives each frame a display matrix if the container stores one, or if the frame itself comes with a display
orientation message. A player applies a message until another one turns the frames otherwise. Encoders send messages
with keyframes alone, and a seek may land after the last message. Therefore the messages are read from the packets.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

_MESSAGES = 47  # payload type of a display orientation message, in H.264 (D.1.27) and in HEVC (D.2.17)


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
        if self == UPRIGHT:
            return image
        image = np.rot90(image, self.degrees // 90)
        return np.ascontiguousarray(image[:, ::-1] if self.mirrored else image)


UPRIGHT = Orientation(0, False)
_ORIENTATIONS = tuple(Orientation(degrees, mirrored) for mirrored in (False, True) for degrees in (0, 90, 180, -90))


@functools.lru_cache
def nearest_orientation(display_matrix: bytes) -> Orientation:
    """Returns the orientation that is nearest to a display matrix, nine int32 in the order of FFmpeg.

    A matrix may also scale and shear, which is ignored. A matrix that maps all points onto a line or a point says
    nothing, and the frame is shown as stored, as ffmpeg does.
    """
    # ISO 14496-12: (x, y) moves to (a x + c y, b x + d y), with a, b at 0, 1 and c, d at 3, 4.
    return _nearest(np.frombuffer(display_matrix, np.int32)[[0, 3, 1, 4]].reshape(2, 2).astype(float))


def _nearest(matrix):
    scale = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not scale.all() or abs(np.linalg.det(matrix / scale)) < 1e-3:
        return UPRIGHT
    return max(_ORIENTATIONS, key=lambda candidate: np.sum(candidate.matrix * matrix / scale))


class Messages:
    """The display orientation messages of a stream, which apply to all frames from theirs on.

    As in ffmpeg, a message that neither turns nor mirrors, or that cancels another, has no effect. In streams without
    presentation times the first message applies to all frames.

    Args:
        codec: FFmpeg's name of the codec. Codecs other than 'h264' and 'hevc' have no messages.
        extradata: that of the codec context, or None.
    """

    def __init__(self, codec: str, extradata: bytes | None):
        self._codec, extradata = codec, extradata or b""
        # In MP4 and Matroska, the length of each unit stands before it, in so many bytes (ISO 14496-15).
        position = {"h264": 4, "hevc": 21}.get(codec, 0)
        is_prefixed = extradata[:1] == b"\1" and len(extradata) > position
        self._length_bytes = (extradata[position] & 3) + 1 if is_prefixed else 0
        self._found: list[tuple[float, Orientation]] = []

    def read(self, packet) -> None:
        """Reads the message of the next packet, a packet of PyAV, if it has one."""
        if self._codec not in ("h264", "hevc"):
            return
        for messages in _message_units(memoryview(packet), self._codec == "hevc", self._length_bytes):
            turn = _orientation_message(messages)
            pts = -math.inf if packet.pts is None else packet.pts
            if turn not in (None, UPRIGHT) and not (self._found and packet.pts is None):
                bisect.insort(self._found, (pts, turn), key=_pts)

    def at(self, pts: int | None) -> Orientation:
        """Returns the orientation of a frame without a display matrix, shown at `pts`."""
        count = 1 if pts is None else bisect.bisect_right(self._found, pts, key=_pts)
        return self._found[count - 1][1] if self._found and count else UPRIGHT


def _pts(found):
    return found[0]


def _message_units(data, is_hevc, length_bytes) -> Iterator[bytes]:
    """Yields the messages that stand before the picture of a packet: the content of its SEI units."""
    for unit in _units(data, length_bytes):
        kind = unit[0] >> 1 & 63 if is_hevc else unit[0] & 31
        if (kind < 32) if is_hevc else (1 <= kind <= 5):  # the picture
            return
        if kind == (39 if is_hevc else 6):
            yield bytes(unit[2 if is_hevc else 1 :]).replace(b"\0\0\3", b"\0\0")


def _units(data, length_bytes) -> Iterator[memoryview]:
    """Yields the units of a packet that are not empty."""
    start = 0
    if length_bytes:
        while start < len(data):
            end = start + length_bytes + int.from_bytes(data[start : start + length_bytes])
            if unit := data[start + length_bytes : end]:
                yield unit
            start = end
        return
    content = bytes(data)  # which has `find`; each unit stands after the bytes 0, 0, 1
    start = content.find(b"\0\0\1")
    while start >= 0:
        end = content.find(b"\0\0\1", start + 3)
        if unit := data[start + 3 : end if end >= 0 else len(data)]:
            yield unit
        start = end


def _orientation_message(messages: bytes) -> Orientation | None:
    """Returns the orientation of the first display orientation message of a unit."""
    start = 0
    while start + 2 < len(messages):
        kind, start = _number(messages, start)
        size, start = _number(messages, start)
        if kind == _MESSAGES:
            # cancel_flag, hor_flip, ver_flip, and 16 bits of a counterclockwise turn that follows the flips
            bits = int.from_bytes(messages[start : start + 3].ljust(3, b"\0"))
            if bits >> 23:
                return UPRIGHT
            angle = 2 * math.pi * (bits >> 5 & 0xFFFF) / 2**16
            turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            return _nearest(turn @ np.diag([1 - 2 * (bits >> 22 & 1), 1 - 2 * (bits >> 21 & 1)]))
        start += size
    return None


def _number(data, start):
    """Returns a number that is a sum of bytes, of which only the last is below 255, and the position after it."""
    total = 0
    while start < len(data):
        total, start = total + data[start], start + 1
        if data[start - 1] < 255:
            break
    return total, start

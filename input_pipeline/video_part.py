"""A part of a video file that is found by seeking: nothing before it is read, however long the file is."""

import itertools
import math
from typing import NamedTuple

import av

from input_pipeline.containers import DECODER_ERRORS, METADATA_OPTIONS
from input_pipeline.decode import Video
from input_pipeline.errors import DecodeError
from input_pipeline.frame_index import UNINDEXED_CODECS, UNINDEXED_FORMATS, FrameIndex

TOLERANCE = 1e-6  # seconds, for rounding of times; far below the duration of any frame
_ROUNDED_SECONDS = 0.5  # by which a part may end after its video: annotations are rounded
_REORDERED = 17  # packets; in no codec a frame is further out of presentation order
_MAX_SEEKS = 4


class CannotSeek(Exception):
    """The packets of a file do not say where a part begins, so that the file must be read from its beginning."""


class NoSuchPart(DecodeError):
    """A video has no frame between the times of a part, or is too short."""


class VideoPart(Video):
    """The frames of a video file whose times are from `start` to `end`, `end` excluded. Parts that touch share none.

    The attributes and methods are those of `Video`. Times and indices are those of the part. A frame that is damaged
    after a seek is decoded from the beginning of the file, as in `Video`.

    Args:
        path: a path.
        start: seconds from the first frame of the file.
        end: likewise, or None for the end of the file.
        limit_seconds: see `Video`.

    Raises:
        CannotSeek: the format has no index, or seeking in this file does not find the part.
        DecodeError: as `Video`.
        NoSuchPart: see `require_within`; or there is no frame between `start` and `end`.
    """

    def __init__(self, path: str, start: float, end: float | None, *, limit_seconds: float = 60.0):
        self._start, self._end = start, end
        super().__init__(path, limit_seconds=limit_seconds)

    def _index(self, container, stream, messages) -> FrameIndex:
        """Returns the frames of the part, and the keyframes from which they are decoded."""
        if _is_unindexed(container, stream):
            raise CannotSeek
        try:
            origin = _first_pts(self._packets(container, stream), messages)
            first, last = (self._pts_at(seconds, origin, stream.time_base) for seconds in (self._start, self._end))
            packets = self._packets_from(container, stream, first)
            frames, keyframes, is_end = _read_part(packets, last, messages)
        except av.FFmpegError:
            raise CannotSeek from None
        if is_end:
            pts, duration = max(frames)
            interval = duration or (pts - origin) / max(len(frames) - 1, 1)
            require_within(self._name, float((pts + interval - origin) * stream.time_base), self._start, self._end)
        inside = [frame for frame in frames if first <= frame[0] < last]
        if not inside:
            raise no_frame(self._name, self._start, self._end)
        if len(inside) < len(frames) and frames[-1][0] >= last:
            following = next(pts for pts, _ in frames if pts >= last)
            inside[-1] = inside[-1][0], following - inside[-1][0]
        return FrameIndex(inside, sorted(keyframes))

    def _pts_at(self, seconds: float | None, origin: int, time_base) -> float:
        """Returns the least pts of a frame that is not before `seconds`."""
        return math.inf if seconds is None else origin + math.ceil((seconds - TOLERANCE) / float(time_base))

    def _packets_from(self, container, stream, first: float):
        """Returns an iterator over the packets from the last keyframe at or before the pts `first`."""
        target = int(first)
        for _ in range(_MAX_SEEKS):
            container.seek(target, stream=stream)
            packets = (packet for packet in self._packets(container, stream) if packet.size)
            landed = next(packets, None)
            if landed is None or landed.pts is None or not landed.is_keyframe:
                break
            if landed.pts <= first:
                return itertools.chain([landed], packets)
            # The container indexes by dts, and the keyframe is presented after `first`.
            target = (landed.pts if landed.dts is None else landed.dts) - 1
        raise CannotSeek


def _read_part(packets, last: float, messages) -> tuple[list[tuple[int, int]], list[tuple[int, int]], bool]:
    """Reads packets, from a keyframe on, until all frames before the pts `last` have come.

    Returns:
        The frames and the keyframes as in `FrameIndex`, and whether the file has ended.
    """
    keyframes, frames, past = [], [], 0
    for packet in packets:
        pts = packet.pts
        if pts is None:
            raise CannotSeek
        messages.read(packet)
        if packet.is_keyframe:
            keyframes.append((pts, pts if packet.dts is None else min(pts, packet.dts)))
        if pts >= keyframes[0][0] and not packet.is_discard:
            frames.append((pts, packet.duration or 0))
        past = past + 1 if pts >= last else 0
        if past > _REORDERED:
            break
    frames.sort()
    if not frames or len({pts for pts, _ in frames}) < len(frames):
        raise CannotSeek
    return frames, keyframes, past <= _REORDERED


def _first_pts(packets, messages) -> int:
    """Returns the pts of the first frame of a file, of the packets from its beginning."""
    keyframe, found = None, []
    for packet in packets:
        if not packet.size:
            continue
        if packet.pts is None:
            raise CannotSeek
        messages.read(packet)
        if keyframe is None and packet.is_keyframe:
            keyframe = packet.pts
        if keyframe is not None and packet.pts >= keyframe and not packet.is_discard:
            found.append(packet.pts)
        if len(found) == _REORDERED:
            break
    if not found:
        raise CannotSeek
    return min(found)


def require_within(name: str, seconds: float, start: float, end: float | None) -> None:
    """Raises NoSuchPart if a part starts after the end of a video of `seconds`, or ends over half a second after."""
    if start >= seconds or end is not None and end > seconds + _ROUNDED_SECONDS:
        last = "" if end is None else f" and ends at {end:g} s"
        raise NoSuchPart(f"{name}: lasts {seconds:g} s, but its part starts at {start:g} s{last}.")


def no_frame(name: str, start: float, end: float | None) -> NoSuchPart:
    """Returns the error for a part without frames."""
    return NoSuchPart(
        f"{name}: no frame lies between {start:g} s and {'the end' if end is None else f'{end:g} s'} of the part."
    )


class Head(NamedTuple):
    """What the head of a video file says.

    Attributes:
        seconds: how long the video claims to last, or infinity if it does not say.
        is_indexed: whether parts can be found by seeking, see `VideoPart`.
    """

    seconds: float = math.inf
    is_indexed: bool = True


def read_head(path: str) -> Head:
    """Reads the head of a video file. Of a file that cannot be opened, nothing is known."""
    try:
        with av.open(f"file:{path}", **METADATA_OPTIONS) as container:
            streams = container.streams.video
            lengths = [float(stream.duration * stream.time_base) for stream in streams if stream.duration]
            if not lengths and container.duration:
                lengths = [container.duration / av.time_base]
            is_indexed = not any(_is_unindexed(container, stream) for stream in streams)
            return Head(max(lengths, default=math.inf), is_indexed)
    except DECODER_ERRORS:
        return Head()


def _is_unindexed(container, stream) -> bool:
    return container.format.name in UNINDEXED_FORMATS or stream.codec.name in UNINDEXED_CODECS

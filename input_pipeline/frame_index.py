"""The frames and keyframes of a video by its packets, and the times of frames whose timestamps are repeated."""

import bisect
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import DecodeError
from input_pipeline.orientation import Messages

# The frames of these files are numbered by decoding from the start. AVI stores no presentation times, and one AVI
# packet may hold two frames. Transport and program streams have no index to seek in, and neither have pictures that
# follow each other (jpeg_pipe and others). VP8 has packets without a visible frame.
UNINDEXED_FORMATS = {"avi", "mpegts", "mpeg"}
UNINDEXED_CODECS = {"vp8"}

_KEPT = 0.9  # share of timestamps that ascend, below which none is trusted if some jump back


class FrameIndex(NamedTuple):
    """What the packets of a stream say about its frames.

    Attributes:
        frames: (pts, duration) of each frame in presentation order. Empty if the packets do not determine the frames:
            then they are numbered by decoding.
        keyframes: (pts, safe seek target) of each keyframe, ascending. Containers index by dts or by pts. The safe
            target min(pts, dts) works for both, but a seek to it may land one GOP early when the container indexes by
            pts.
    """

    frames: list[tuple[int, int]]
    keyframes: list[tuple[int, int]]


def read_index(name: str, container, stream, packets, messages: Messages) -> FrameIndex:
    """Reads all packets of a stream.

    Args:
        name: name of the video in errors.
        container, stream: of PyAV.
        packets: iterator over the packets of the stream.
        messages: reads the packets, too.

    Raises:
        DecodeError: the file is truncated or lacks packets.
    """
    found = []
    for packet in packets:
        if packet.size:
            messages.read(packet)
            found.append((packet.pts, packet.dts, packet.duration, packet.is_keyframe, packet.is_discard))
    _check_size(name, container, stream, len(found))
    if (
        container.format.name in UNINDEXED_FORMATS
        or container.format.name.endswith("_pipe")
        or stream.codec_context.name in UNINDEXED_CODECS
        or any(pts is None for pts, *_ in found)
    ):
        return FrameIndex([], [])
    keyframes = sorted(
        (pts, pts if dts is None else min(pts, dts)) for pts, dts, _, is_keyframe, _ in found if is_keyframe
    )
    # Drop packets that an MP4 edit list hides, and frames before the first keyframe, which cannot be decoded.
    frames = sorted(
        (pts, duration or 0)  # None cannot be sorted
        for pts, _, duration, _, is_hidden in found
        if keyframes and not is_hidden and pts >= keyframes[0][0]
    )
    is_distinct = len({pts for pts, _ in frames}) == len(frames)
    return FrameIndex(frames if is_distinct else [], keyframes)


def _check_size(name, container, stream, count):
    """Raises DecodeError if the index of the container has entries beyond the end of the file, or more than packets."""
    size = container.size
    # A generator, because the index of a damaged file may claim millions of frames.
    if any(entry.size and entry.pos + entry.size > size for entry in stream.index_entries):
        raise DecodeError(f"{name}: the file is truncated.")
    if container.format.name == "avi":  # every frame after a missing packet would get a wrong number
        expected = sum(entry.size > 0 for entry in stream.index_entries)
        if expected > count:
            raise DecodeError(f"{name}: {expected - count} of {expected} frames are damaged.")


def ascending(timestamps: list[int | None]) -> np.ndarray | None:
    """Returns timestamps that ascend, (n,) float64, where some may be repeated, or None if they cannot be trusted.

    The longest ascending part of the timestamps is kept. A frame whose timestamp is not part of it is moved between
    those before and after it, at most as far from the one before as is usual in the video. Timestamps cannot be trusted
    if one is missing, if they jump back and none is repeated, or if they jump back and fewer than nine tenths ascend.
    """
    if None in timestamps:
        return None
    is_sorted = timestamps == sorted(timestamps)
    if len(set(timestamps)) == len(timestamps):
        return np.array(timestamps, np.float64) if is_sorted else None
    kept = _longest_ascending(timestamps)
    if len(kept) < 2 or not is_sorted and len(kept) < _KEPT * len(timestamps):
        return None
    usual = float(np.median(np.diff([timestamps[number] for number in kept])))
    times = np.array(timestamps, np.float64)
    times[: kept[0]] = times[kept[0]] - usual * np.arange(kept[0], 0, -1)
    for number, following in zip(kept, [*kept[1:], len(times)], strict=True):
        step = usual
        if following < len(times):
            step = min(step, (times[following] - times[number]) / (following - number))
        times[number + 1 : following] = times[number] + step * np.arange(1, following - number)
    return times


def _longest_ascending(values):
    """Returns the positions of the longest strictly ascending subsequence, of equal values the first."""
    ends, before = [], []  # of the subsequences of each length: the position of the smallest last value
    for position, value in enumerate(values):
        length = bisect.bisect_left(ends, value, key=values.__getitem__)
        before.append(ends[length - 1] if length else -1)
        if length == len(ends) or value < values[ends[length]]:
            ends[length : length + 1] = [position]
    kept, position = [], ends[-1]
    while position >= 0:
        kept.append(position)
        position = before[position]
    return kept[::-1]

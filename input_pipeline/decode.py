"""Decoding: the exact frames of a video file, by index.

The first pass reads the packets without decoding them. It gives the presentation time (pts) of every frame and the
keyframes at which decoding can start. The second pass seeks to the keyframe at or before each requested frame, decodes
forward, and identifies the frame by its pts. Indices computed from a nominal frame rate, and seeks by time alone,
return wrong frames when the frame rate varies or groups of pictures are open.
"""

import bisect
import collections
import contextlib
import dataclasses
import io
import itertools
import os
import stat
import time
from collections.abc import Iterator

import av
import numpy as np
from av.codec.context import ThreadType
from av.stream import Disposition

from input_pipeline.errors import DecodeError
from input_pipeline.watchdog import watch_call

# AVI stores no presentation times, and one AVI packet may hold two frames. Transport and program streams have no index
# to seek in. VP8 has packets that show no frame. These are decoded from the start, and their frames are counted.
_UNINDEXED_FORMATS = {"avi", "mpegts", "mpeg"}
_UNINDEXED_CODECS = {"vp8"}

# FFmpeg opens these as videos, but they are text shown letter by letter (tty) and lists of other files.
_NO_VIDEO_FORMATS = {"tty", "concat", "hls"}

_MAX_REORDER = 16  # the most frames, in any codec, that a decoder may output before a frame that should precede them


@dataclasses.dataclass(frozen=True)
class Info:
    """Properties of a video file.

    Attributes:
        codec: FFmpeg's name of the codec.
        width, height: pixels as stored, before rotation.
        rotation: degrees counterclockwise by which players rotate the frames.
        audio: whether the file has an audio stream.
    """

    codec: str
    width: int
    height: int
    rotation: int
    audio: bool


class Video:
    """The frames of one video file, numbered from 0 in presentation order.

    A requested frame is either exactly that frame or a DecodeError. A frame is refused if FFmpeg flags it as damaged,
    or if a frame before it in its group of pictures is flagged. A seek can cause flags in a sound file. Therefore a
    frame that is flagged after a seek is decoded again from the start of the file. Decoded from the start, none of
    about 70 sound files in 13 codecs was flagged.

    FFmpeg conceals some damage without a flag: of 200 copies of a clip with three flipped bits each, about 40 decoded
    to wrong pixels. With `strict`, everything that FFmpeg finds doubtful is an error. In short groups of pictures
    without B-frames, 7 to 24 of 200 damaged copies still passed, so that only a checksum proves that a file is sound.
    `strict` refuses some sound files, and is meant for clips that this package encoded.

    The file stays open until the first frames are read, or until this object is deleted.

    Args:
        source: a path, or the content of a file as bytes.
        name: name of the video in errors. None: the path.
        strict: refuse everything that FFmpeg finds doubtful.
        limit_seconds: the most seconds that opening and each call of a method may take.

    Attributes:
        times: (n,) float64, seconds from the first frame to each frame.
        duration: seconds, the end of the last frame.
        decoded: frames that FFmpeg has decoded so far to return the requested ones.

    Raises:
        DecodeError: the file does not exist, is not a regular file, is damaged or truncated (if the container tells;
            Matroska does not), holds no video, or takes too long.
    """

    def __init__(
        self, source: str | bytes, *, name: str | None = None, strict: bool = False, limit_seconds: float = 60.0
    ):
        self._source, self._strict, self._limit = source, strict, limit_seconds
        self._name = name or (source if isinstance(source, str) else f"video of {len(source)} bytes")
        self._opened, self.decoded = None, 0
        with self._working():
            container, stream = self._open()
            try:
                self._codec = stream.codec.canonical_name
                self._audio = bool(container.streams.audio)
                frames = self._index(container, stream)
                time_base, rate = stream.time_base, stream.average_rate or 25
            except BaseException:
                container.close()
                raise
            if frames:
                self._opened = container, stream
                self._pts = [pts for pts, _ in frames]
            else:
                container.close()
                self._pts = None
                frames = self._count()
                if any(pts is None or pts <= before for (before, _), (pts, _) in itertools.pairwise(frames)):
                    frames, time_base = [(index, 1) for index in range(len(frames))], 1 / rate
        if not frames:
            raise DecodeError(f"{self._name}: no frame can be decoded.")
        last_duration = frames[-1][1]
        self.times = (np.array([pts for pts, _ in frames], np.float64) - frames[0][0]) * float(time_base)
        # If the file gives no duration for the last frame, the frame lasts as long as the others do on average.
        interval = self.times[-1] / (len(frames) - 1) if len(frames) > 1 else 1 / float(rate)
        self.duration = float(self.times[-1] + (last_duration * float(time_base) if last_duration else interval))

    def __del__(self):
        if self._opened:
            self._opened[0].close()

    def frames(self, indices) -> np.ndarray:
        """Returns the frames of the given indices, which may be in any order and repeat; each is decoded once.

        Frames are rotated as the file demands, in quarter turns, as players do.

        Returns:
            (n, y, x, 3) uint8, red, green, blue.

        Raises:
            IndexError: an index is outside [0, len(times)).
            DecodeError: one of the frames cannot be decoded or is damaged.
        """
        distinct, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if not (len(distinct) and 0 <= distinct[0] and distinct[-1] < len(self.times)):
            raise IndexError(f"{self._name} has {len(self.times)} frames, but the indices are {indices}.")
        with self._working():
            images = [_image(frame) for frame in self._pictures(distinct.tolist())]
            if len({image.shape for image in images}) > 1:
                raise DecodeError(f"{self._name}: the frames are not of one size.")
            return np.stack([images[position] for position in inverse])

    def each(self, indices) -> Iterator[np.ndarray]:
        """Yields the frames of ascending indices, which may repeat, one at a time: (y, x, 3) uint8 as from `frames`.

        Each frame is decoded once, and only one is in memory. Each frame may take `limit_seconds`.

        Raises:
            IndexError, DecodeError: as in `frames`, when the frame is reached.
        """
        indices = np.asarray(indices, np.int64)
        if not (len(indices) and 0 <= indices[0] and indices[-1] < len(self.times) and (np.diff(indices) >= 0).all()):
            raise IndexError(
                f"{self._name} has {len(self.times)} frames, but the indices are {indices}. They must ascend."
            )
        pictures, shape = self._pictures(np.unique(indices).tolist()), None
        for _, group in itertools.groupby(indices.tolist()):
            with self._working():
                image = _image(next(pictures))
                if image.shape != (shape := shape or image.shape):
                    raise DecodeError(f"{self._name}: the frames are not of one size.")
            for _ in group:
                yield image

    def info(self) -> Info:
        """Returns the properties of the file. Decodes the first frame.

        Raises:
            DecodeError: the first frame cannot be decoded or is damaged.
        """
        with self._working():
            (first,) = self._pictures([0])
            return Info(self._codec, first.width, first.height, first.rotation, self._audio)

    @contextlib.contextmanager
    def _working(self):
        """Converts every exception to DecodeError, and limits the time."""
        self._deadline = time.monotonic() + self._limit
        try:
            with watch_call(self._name, self._limit):
                yield
        except DecodeError:
            raise
        except av.ExitError as error:  # FFmpeg gave up a read at its timeout
            raise self._too_long() from error
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DecodeError(f"{self._name}: {reason}.") from error

    def _too_long(self):
        return DecodeError(f"{self._name}: decoding takes longer than {self._limit:g} s.")

    def _open(self):
        """Returns the container and its video stream."""
        if isinstance(self._source, str):
            if not stat.S_ISREG(os.stat(self._source).st_mode):  # opening a pipe would wait for a writer
                raise DecodeError(f"{self._name}: not a regular file.")
            source = f"file:{self._source}"  # without the scheme, FFmpeg takes a name with a colon for a URL
        else:
            source = io.BytesIO(self._source)
        # Titles and comments in other encodings than UTF-8 are common. By default PyAV refuses to open such files.
        container = av.open(source, metadata_errors="replace", timeout=self._limit)
        try:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams or container.format.name in _NO_VIDEO_FORMATS:
                raise DecodeError(f"{self._name}: the file holds no video.")
            context = streams[0].codec_context
            if context is None:
                raise DecodeError(f"{self._name}: there is no decoder for its video.")
            # One thread: there is a worker for each core already.
            context.thread_type, context.thread_count = ThreadType.NONE, 1
            if self._strict:
                context.options = {"err_detect": "explode+aggressive"}
        except BaseException:
            container.close()
            raise
        return container, streams[0]

    def _packets(self, container, stream):
        # PyAV's generator never frees 150 bytes if it is dropped before its end, so that it is closed explicitly.
        with contextlib.closing(container.demux(stream)) as packets:
            for packet in packets:
                if time.monotonic() > self._deadline:
                    raise self._too_long()
                yield packet

    def _index(self, container, stream):
        """Returns [(pts, duration)] of the frames in presentation order, or [] if the frames must be counted."""
        packets = [
            (p.pts, p.dts, p.duration, p.is_keyframe, p.is_discard) for p in self._packets(container, stream) if p.size
        ]
        entries = [entry for entry in stream.index_entries if entry.size]
        if any(entry.pos + entry.size > container.size for entry in entries):
            raise DecodeError(f"{self._name}: the file is truncated.")
        if container.format.name == "avi" and len(entries) > len(packets):  # all later frames would get wrong numbers
            raise DecodeError(f"{self._name}: {len(entries) - len(packets)} of {len(entries)} frames are damaged.")
        if (
            container.format.name in _UNINDEXED_FORMATS
            or stream.codec_context.name in _UNINDEXED_CODECS
            or any(pts is None for pts, *_ in packets)
        ):
            return []
        # For the keyframe of each group of pictures: its pts, and the smaller of its pts and dts. Containers index by
        # dts or by pts. A seek to the smaller one never lands after the keyframe, but lands a group too early if the
        # container indexes by pts.
        self._keyframes = sorted((pts, pts if dts is None else min(pts, dts)) for pts, dts, _, key, _ in packets if key)
        # Edit lists discard packets. Frames before the first keyframe lack their reference.
        frames = sorted(
            (pts, duration)
            for pts, _, duration, _, discard in packets
            if self._keyframes and not discard and pts >= self._keyframes[0][0]
        )
        return frames if len({pts for pts, _ in frames}) == len(frames) else []

    def _count(self):
        """Decodes all frames and returns their [(pts, duration)], in the order of decoding."""
        container, stream = self._open()
        with container:
            return [(frame.pts, frame.duration) for frame in self._decoded(container, stream)]

    def _pictures(self, wanted):
        """Yields the frames of ascending, distinct indices."""
        count = 0
        if self._pts is None:
            attempts = (self._by_count,)
        else:
            # A seek may land too late, or in a group of pictures that needs the group before. Then a seek that lands
            # earlier finds the frame, or decoding from the start.
            attempts = (self._by_seeking, self._by_seeking_early, self._from_start)[: 1 if self._strict else 3]
        for attempt in attempts:
            for frame in attempt(wanted[count:]):
                count += 1
                yield frame
            if count == len(wanted):
                return
        missing = wanted[count]
        raise DecodeError(f"{self._name}: frame {missing}, at {self.times[missing]:.2f} s, is damaged or missing.")

    def _by_count(self, wanted):
        container, stream = self._open()
        with container:
            yield from _collect(enumerate(self._decoded(container, stream)), wanted)

    def _from_start(self, wanted):
        container, stream = self._open()
        with container:
            frames = ((frame.pts, frame) for frame in self._decoded(container, stream))
            yield from _collect(frames, [self._pts[index] for index in wanted])

    def _by_seeking_early(self, wanted):
        return self._by_seeking(wanted, early=True)

    def _by_seeking(self, wanted, early=False):
        """Yields frames by one seek for each group of pictures, up to the first frame that is missing or damaged."""
        (container, stream), self._opened = self._opened or self._open(), None
        wanted = [self._pts[index] for index in wanted]
        with container:
            for keyframe, group in itertools.groupby(
                wanted, lambda pts: bisect.bisect(self._keyframes, (pts, float("inf"))) - 1
            ):
                group_pts, count = list(group), 0
                try:
                    pts, safe = self._keyframes[keyframe]
                    self._seek(container, stream, safe if early else pts, safe)
                    frames = ((frame.pts, frame) for frame in self._decoded(container, stream, set(group_pts)))
                    for frame in _collect(frames, group_pts):
                        count += 1
                        yield frame
                except av.InvalidDataError:
                    if self._strict:
                        raise
                if count < len(group_pts):
                    return

    def _seek(self, container, stream, pts, safe):
        """Seeks to the keyframe with this pts, or to one before it."""
        container.seek(pts, stream=stream)
        first = next(self._packets(container, stream))
        container.seek(pts if first.pts is not None and first.pts <= pts else safe, stream=stream)

    def _decoded(self, container, stream, wanted=None):
        """Yields frames in presentation order: all, or those whose pts is in `wanted` and some others."""
        context = stream.codec_context
        for packet in self._packets(container, stream):
            if wanted and context.name == "h264":
                # Pictures to which no other refers need no decoding. Not for HEVC: there NONREF also skips pictures to
                # which higher temporal layers refer.
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            frames = packet.decode()
            self.decoded += len(frames)
            yield from frames


def _collect(frames, wanted):
    """Yields the wanted frames in order, up to the first that is missing or damaged.

    Args:
        frames: iterable of (key, frame), a key being an index or a pts, in nearly ascending order.
        wanted: ascending keys.
    """
    wanted, missing, held = set(wanted), collections.deque(wanted), {}
    is_damaged, late = False, 0
    for key, frame in frames:
        is_damaged = frame.is_corrupt or is_damaged and not frame.key_frame
        if key in wanted:
            if is_damaged:
                return
            held[key] = frame
        # Frames rarely come out of order: a decoder learns from the stream how far it must look ahead.
        late = late + 1 if key is not None and key > missing[0] else 0
        while missing and missing[0] in held:
            yield held.pop(missing.popleft())
            late = 0
        if not missing or late > _MAX_REORDER:
            return


def _image(frame):
    """Returns a frame as RGB, (y, x, 3) uint8, upright."""
    # One thread: FFmpeg would start one per core for every frame, at ten times the cost of converting a small frame.
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    return np.rot90(rgb, round(frame.rotation / 90))  # counterclockwise both in FFmpeg and in NumPy

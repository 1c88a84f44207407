"""Exact frames of a video file, by index.

A first pass reads the packets without decoding them, for the presentation time (pts) of every frame and the
places where decoding can start. A second pass seeks to the keyframe at or before each wanted frame, decodes
forward, and recognises the frame by its pts. Indices computed from a nominal frame rate, and seeks by time
alone, return other frames than asked for when the rate varies or groups of pictures are open.
"""

import bisect
import collections
import contextlib
import dataclasses
import io
import itertools
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator

import av
import numpy as np
from av.codec.context import ThreadType
from av.stream import Disposition

from input_pipeline.errors import DecodeError

# AVI stores no presentation times, and one packet of it may hold two frames; transport and program streams
# have no index to seek in; VP8 has packets that show nothing. All are decoded from the start and counted.
_UNINDEXED_FORMATS = {"avi", "mpegts", "mpeg"}
_UNINDEXED_CODECS = {"vp8"}

# Text shown letter by letter, and lists of other files: FFmpeg takes them for videos.
_NO_VIDEO_FORMATS = {"tty", "concat", "hls"}

_MAX_REORDER = 16  # frames that a decoder may show between a frame and its place, at most, in any codec

_work = {}  # thread -> what it decodes at the moment


@dataclasses.dataclass(frozen=True)
class Info:
    """What a file says of its video: `codec` by FFmpeg's name, `width` and `height` in pixels as they are stored,
    `rotation` in degrees counterclockwise that it is shown with, and whether there is `audio` beside it."""

    codec: str
    width: int
    height: int
    rotation: int
    audio: bool


class Video:
    """The frames of one video file, numbered from 0 in the order in which they are shown.

    A frame is never another than the one asked for. A frame is refused that FFmpeg flags as damaged, or that comes
    after a flagged one in its group of pictures. Flags that come from a seek are not believed: then all before the
    frame is decoded as well, and no sound file of some 70, of 13 codecs, was flagged like that. FFmpeg conceals some
    damage without a flag: of 200 copies of a clip with three flipped bits, about 40 decoded to other pixels. `strict`
    takes all that FFmpeg finds doubtful for an error; in short groups without B-frames 7 to 24 of 200 were left, so
    that only a checksum is proof. It refuses some sound files, and is meant for clips of our own making.

    The file stays open until its first frames are read, at most as long as this object lives.

    Args:
      source: a path, or the content of a file as bytes.
      name: of the video in errors, by default the path.
      strict: refuse all that FFmpeg finds doubtful.
      limit_seconds: time that opening and each call of a method may take.

    Attributes:
      times: (n,) float64, seconds from the first frame to each.
      duration: seconds, the end of the last frame.
      decoded: frames that FFmpeg has decoded for it until now, to return those that were asked for.

    Raises:
      DecodeError: the file is missing, no regular file, damaged, truncated (where the container tells: Matroska
        does not), holds no video, or takes too long.
    """

    def __init__(
        self, source: str | bytes, *, name: str | None = None, strict: bool = False, limit_seconds: float = 60.0
    ):
        self._source, self._strict, self._limit = source, strict, limit_seconds
        self._name = name or (source if isinstance(source, str) else f"video of {len(source)} bytes")
        self._kept, self.decoded = None, 0
        with self._working():
            container, stream = self._open()
            try:
                self._codec = stream.codec.canonical_name
                self._audio = bool(container.streams.audio)
                shown = self._index(container, stream)
                time_base, rate = stream.time_base, stream.average_rate or 25
            except BaseException:
                container.close()
                raise
            if shown:
                self._kept = container, stream
                self._pts = [pts for pts, _ in shown]
            else:
                container.close()
                self._pts = None
                shown = self._count()
                if any(pts is None or pts <= before for (before, _), (pts, _) in itertools.pairwise(shown)):
                    shown, time_base = [(index, 1) for index in range(len(shown))], 1 / rate
        if not shown:
            raise DecodeError(f"{self._name}: no frame can be decoded.")
        last = shown[-1][1]
        self.times = (np.array([pts for pts, _ in shown], np.float64) - shown[0][0]) * float(time_base)
        # Without a duration of its own the last frame stays as long as the others do on average.
        interval = self.times[-1] / (len(shown) - 1) if len(shown) > 1 else 1 / float(rate)
        self.duration = float(self.times[-1] + (last * float(time_base) if last else interval))

    def __del__(self):
        if self._kept:
            self._kept[0].close()

    def frames(self, indices) -> np.ndarray:
        """Decodes the frames of the given indices, in any order and with repeats, each once.

        Rotation that the file asks for is applied (in quarter turns), as players do.

        Returns:
          (n, y, x, 3) uint8, red, green, blue.

        Raises:
          IndexError: an index outside [0, len(times)).
          DecodeError: one of the frames cannot be decoded or is damaged.
        """
        wanted, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if not (len(wanted) and 0 <= wanted[0] and wanted[-1] < len(self.times)):
            raise IndexError(f"{self._name} has {len(self.times)} frames; indices {indices}")
        with self._working():
            images = [_image(frame) for frame in self._pictures(wanted.tolist())]
            if len({image.shape for image in images}) > 1:
                raise DecodeError(f"{self._name}: the frames are not of one size.")
            return np.stack([images[place] for place in inverse])

    def each(self, indices) -> Iterator[np.ndarray]:
        """The frames of ascending indices, repeats among them, one at a time: (y, x, 3) uint8 as from `frames`.

        Decodes each once and keeps no other in memory. Each may take `limit_seconds`.

        Raises:
          IndexError, DecodeError: as `frames`, when the frame is reached.
        """
        indices = np.asarray(indices, np.int64)
        if not (len(indices) and 0 <= indices[0] and indices[-1] < len(self.times) and (np.diff(indices) >= 0).all()):
            raise IndexError(f"{self._name} has {len(self.times)} frames; indices {indices} must ascend")
        pictures, shape = self._pictures(np.unique(indices).tolist()), None
        for _, group in itertools.groupby(indices.tolist()):
            with self._working():
                image = _image(next(pictures))
                if image.shape != (shape := shape or image.shape):
                    raise DecodeError(f"{self._name}: the frames are not of one size.")
            for _ in group:
                yield image

    def info(self) -> Info:
        """What the file says of its video; decodes the first frame.

        Raises:
          DecodeError: the first frame cannot be decoded or is damaged.
        """
        with self._working():
            (first,) = self._pictures([0])
            return Info(self._codec, first.width, first.height, first.rotation, self._audio)

    @contextlib.contextmanager
    def _working(self):
        """All errors as DecodeError, and the limit of time."""
        self._deadline = time.monotonic() + self._limit
        thread = threading.get_ident()
        _work[thread] = _Work(self._name, self._limit)
        try:
            yield
        except DecodeError:
            raise
        except Exception as error:
            if isinstance(error, av.ExitError):  # FFmpeg's word for a read that was given up
                raise self._too_long() from error
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DecodeError(f"{self._name}: {reason}.") from error
        finally:
            del _work[thread]

    def _too_long(self):
        return DecodeError(f"{self._name}: decoding takes longer than {self._limit:g} s.")

    def _open(self):
        """The container and its video stream."""
        if isinstance(self._source, str):
            if not stat.S_ISREG(os.stat(self._source).st_mode):  # opening a pipe would wait for its other end
                raise DecodeError(f"{self._name}: not a regular file.")
            source = f"file:{self._source}"  # names may hold a colon
        else:
            source = io.BytesIO(self._source)
        # Titles and comments in other encodings than UTF-8 are common and would not open otherwise.
        container = av.open(source, metadata_errors="replace", timeout=self._limit)
        try:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams or container.format.name in _NO_VIDEO_FORMATS:
                raise DecodeError(f"{self._name}: the file holds no video.")
            context = streams[0].codec_context
            if context is None:
                raise DecodeError(f"{self._name}: there is no decoder for its video.")
            # Workers are as many as there are cores: threads of the decoder would only get in their way.
            context.thread_type, context.thread_count = ThreadType.NONE, 1
            if self._strict:
                context.options = {"err_detect": "explode+aggressive"}
        except BaseException:
            container.close()
            raise
        return container, streams[0]

    def _packets(self, container, stream):
        # Closed rather than dropped half-way: what PyAV's generator then leaves behind, 150 bytes, is never freed.
        with contextlib.closing(container.demux(stream)) as packets:
            for packet in packets:
                if time.monotonic() > self._deadline:
                    raise self._too_long()
                yield packet

    def _index(self, container, stream):
        """[(pts, duration)] of the frames shown; empty where they must be counted."""
        packets = [
            (p.pts, p.dts, p.duration, p.is_keyframe, p.is_discard) for p in self._packets(container, stream) if p.size
        ]
        entries = [entry for entry in stream.index_entries if entry.size]
        if any(entry.pos + entry.size > container.size for entry in entries):
            raise DecodeError(f"{self._name}: the file is truncated.")
        if container.format.name == "avi" and len(entries) > len(packets):  # all later frames would move
            raise DecodeError(f"{self._name}: {len(entries) - len(packets)} of {len(entries)} frames are damaged.")
        if (
            container.format.name in _UNINDEXED_FORMATS
            or stream.codec_context.name in _UNINDEXED_CODECS
            or any(pts is None for pts, *_ in packets)
        ):
            return []
        # Where each group of pictures starts: its pts, and a timestamp that no seek to lands after it. Containers index
        # by dts or by pts, and what is indexed by pts is found a group too early by the smaller of them.
        self._keyframes = sorted((pts, pts if dts is None else min(pts, dts)) for pts, dts, _, key, _ in packets if key)
        # An edit list discards packets; frames before the first keyframe miss their reference.
        shown = sorted(
            (pts, duration)
            for pts, _, duration, _, discard in packets
            if self._keyframes and not discard and pts >= self._keyframes[0][0]
        )
        return shown if len({pts for pts, _ in shown}) == len(shown) else []

    def _count(self):
        """[(pts, duration)] of all frames, in the order in which they are decoded."""
        container, stream = self._open()
        with container:
            return [(frame.pts, frame.duration) for frame in self._decoded(container, stream)]

    def _pictures(self, wanted):
        """The frames of ascending indices."""
        found = 0
        if self._pts is None:
            attempts = (self._by_count,)
        else:
            # What a seek does not lead to, since it lands too late or in a group that needs the one before, is
            # found by one that lands earlier, or by decoding all that is before it.
            attempts = (self._by_seeking, self._by_seeking_early, self._from_start)[: 1 if self._strict else 3]
        for attempt in attempts:
            for frame in attempt(wanted[found:]):
                found += 1
                yield frame
            if found == len(wanted):
                return
        missing = wanted[found]
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
        (container, stream), self._kept = self._kept or self._open(), None
        wanted = [self._pts[index] for index in wanted]
        with container:
            for place, group in itertools.groupby(
                wanted, lambda pts: bisect.bisect(self._keyframes, (pts, float("inf"))) - 1
            ):
                group, found = list(group), 0
                try:
                    pts, safe = self._keyframes[place]
                    self._seek(container, stream, safe if early else pts, safe)
                    frames = ((frame.pts, frame) for frame in self._decoded(container, stream, set(group)))
                    for frame in _collect(frames, group):
                        found += 1
                        yield frame
                except av.InvalidDataError:
                    if self._strict:
                        raise
                if found < len(group):
                    return

    def _seek(self, container, stream, pts, safe):
        """To the keyframe of that pts, or one before it."""
        container.seek(pts, stream=stream)
        first = next(self._packets(container, stream))
        container.seek(pts if first.pts is not None and first.pts <= pts else safe, stream=stream)

    def _decoded(self, container, stream, wanted=None):
        """Frames in the order in which they are shown: all, or those whose pts is `wanted` and some others."""
        context = stream.codec_context
        for packet in self._packets(container, stream):
            if wanted and context.name == "h264":
                # Pictures that no other refers to need no decoding. (In HEVC the same mark leaves out pictures
                # that higher temporal layers refer to.)
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            frames = packet.decode()
            self.decoded += len(frames)
            yield from frames


def _collect(frames, wanted):
    """Of pairs (place, frame) the frames of the ascending places `wanted`, up to the first missing or damaged."""
    wanted, missing, held = set(wanted), collections.deque(wanted), {}
    damaged, late = False, 0
    for place, frame in frames:
        damaged = frame.is_corrupt or damaged and not frame.key_frame
        if place in wanted:
            if damaged:
                return
            held[place] = frame
        # Rarely frames come out of order: a decoder learns from the stream how far it must look ahead.
        late = late + 1 if place is not None and place > missing[0] else 0
        while missing and missing[0] in held:
            yield held.pop(missing.popleft())
            late = 0
        if not missing or late > _MAX_REORDER:
            return


def _image(frame):
    """RGB uint8 (h, w, 3), upright."""
    # One thread: FFmpeg would start as many as there are cores for every frame, at ten times the cost of a small one.
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    return np.rot90(rgb, round(frame.rotation / 90))  # counterclockwise both in FFmpeg and in NumPy


@dataclasses.dataclass
class _Work:
    """A call that decodes `name` and may take `limit` seconds; it has been seen at it for `seen` seconds."""

    name: str
    limit: float
    seen: float = 0.0


def end_if_stuck(grace_seconds: float = 30.0, held_seconds: float = 120.0) -> None:
    """Has this process end, with one sentence on stderr, when a Video exceeds its limit by `grace_seconds`.

    For processes that only decode. Between packets a Video watches its limit itself; this is for calls of FFmpeg
    that do not return. FFmpeg runs without the interpreter's lock; a loop in C that keeps the lock is ended too, by
    SIGPROF without a sentence, when the process has computed for `held_seconds` and no other thread has run. The time
    that a process is stopped or suspended does not count.
    """
    tick = min(0.5, grace_seconds / 2)

    def watch():
        while True:
            signal.setitimer(signal.ITIMER_PROF, held_seconds)
            time.sleep(tick)
            for work in list(_work.values()):
                work.seen += tick
                if work.seen > work.limit + grace_seconds:
                    seconds = work.limit + grace_seconds
                    sentence = f"vidformers: {work.name}: decoding hangs for over {seconds:g} s; the process ends.\n"
                    os.write(2, sentence.encode("utf-8", "backslashreplace"))
                    os._exit(1)

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    threading.Thread(target=watch, name="end-if-stuck", daemon=True).start()

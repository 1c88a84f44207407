"""Decoding: the exact frames of a video file, by index.

The first pass reads the packets without decoding them. It gives the presentation time (pts) of every frame and the
keyframes at which decoding can start. The second pass seeks to the keyframe at or before each requested frame, decodes
forward, and identifies the frame by its pts. Indices computed from a nominal frame rate, and seeks by time alone,
return wrong frames when the frame rate varies, or when groups of pictures (GOPs) are open: the first frames of an open
GOP refer to frames of the GOP before.
"""

import bisect
import collections
import contextlib
import io
import itertools
import os
import stat
import time
from collections.abc import Iterator

import av
import numpy as np

from input_pipeline.containers import DECODER_ERRORS, error_reason, open_container
from input_pipeline.crop import container_margins
from input_pipeline.display import Display, Info, stream_remarks
from input_pipeline.errors import DecodeError
from input_pipeline.frame_index import FrameIndex, ascending, read_index
from input_pipeline.mp4_index import claimed_bytes
from input_pipeline.orientation import Messages
from input_pipeline.watchdog import watch_call

# Bounds the memory for the times of frames. 19 hours at 60 frames per second.
_MAX_FRAMES = 2**22

_MAX_REORDER = 16  # frames; upper bound, over all codecs, on how far decoder output may be out of presentation order


class Video:
    """The frames of one video file, numbered from 0 in presentation order.

    The methods return exactly the requested frames or raise DecodeError. A frame is refused if FFmpeg flags it as
    damaged, or if a frame before it in its GOP is flagged. A seek can cause flags in an undamaged file. Therefore a
    frame that is flagged after a seek is decoded again from the start of the file. About 70 undamaged files in 13
    codecs, decoded from the start, had no flagged frame.

    FFmpeg conceals some damage without a flag: of 200 copies of a clip with three flipped bits each, about 40 decoded
    to wrong pixels. With `strict`, everything that FFmpeg finds doubtful is an error. In short GOPs without B-frames, 7
    to 24 of 200 damaged copies still passed, so only a checksum proves that a file is undamaged. `strict` refuses some
    undamaged files, and is meant for clips that this package encoded.

    The file stays open until the first frames are read, or until this object is deleted.

    Args:
        source: a path, or the content of a file as bytes.
        name: name of the video in errors. None: the path.
        strict: refuse everything that FFmpeg finds doubtful.
        limit_seconds: time limit in seconds for opening the file and for each call of a method.

    Attributes:
        times: (n,) float64, seconds from the first frame to each frame.
        duration: seconds, the end of the last frame.
        decoded: number of frames that FFmpeg has decoded so far.
        remarks: sentences on how the frames are read, where that is not obvious.

    Raises:
        DecodeError: the file does not exist, is not a regular file, is damaged or truncated (if the container records
            its size; Matroska does not), holds no video, or takes too long.
    """

    def __init__(
        self, source: str | bytes, *, name: str | None = None, strict: bool = False, limit_seconds: float = 60.0
    ):
        self._source, self._strict, self._limit = source, strict, limit_seconds
        self._name = name or (source if isinstance(source, str) else f"video of {len(source)} bytes")
        self._opened, self._display, self.decoded = None, None, 0
        with self._working():
            self._check_file()
            self._read_times()

    def _check_file(self):
        is_path = isinstance(self._source, str)
        if is_path and not stat.S_ISREG(os.stat(self._source).st_mode):
            raise DecodeError(f"{self._name}: not a regular file.")  # opening a pipe waits until a process writes to it
        with open(self._source, "rb") if is_path else io.BytesIO(self._source) as file:
            size = file.seek(0, os.SEEK_END)
            if claimed_bytes(file, size) > size:
                raise DecodeError(f"{self._name}: the file is truncated.")

    def _read_times(self):
        container, stream = self._open()
        try:
            self._codec = stream.codec.canonical_name
            self._audio = bool(container.streams.audio)
            size = stream.codec_context.width, stream.codec_context.height
            self.remarks = stream_remarks(stream.codec_context)
            messages = Messages(self._codec, stream.codec_context.extradata)
            margins = container_margins(container, stream)
            self._display = Display(self._name, size, stream.sample_aspect_ratio, messages, margins)
            frames, self._keyframes = self._index(container, stream, messages)
            # FFmpeg's default rate is 25, for streams that store none.
            time_base, rate = stream.time_base, stream.average_rate or 25
        except BaseException:
            container.close()
            raise
        if frames:
            self._opened = container, stream
            self._pts = [pts for pts, _ in frames]
            timestamps = np.array(self._pts, np.float64)
        else:
            container.close()
            self._pts = None
            frames = self._decode_timestamps()
            timestamps = ascending([pts for pts, _ in frames])
        if not frames:
            raise DecodeError(f"{self._name}: no frame can be decoded.")
        self._set_times(timestamps, frames, float(time_base), float(1 / rate))

    def _index(self, container, stream, messages) -> FrameIndex:
        return read_index(self._name, container, stream, self._packets(container, stream), messages)

    def _set_times(self, timestamps, frames, time_base, interval):
        if timestamps is None:  # as in raw streams and some AVI files: assume a constant frame rate
            timestamps, time_base, last_duration = np.arange(len(frames), dtype=np.float64), interval, 1
        else:
            last_duration = frames[-1][1]
            repeated = len(frames) - len({pts for pts, _ in frames})
            if repeated:
                self.remarks += (
                    f"{repeated} of {len(frames)} frames have the time of another frame, and are shown between their "
                    "neighbours.",
                )
        self.times = (timestamps - timestamps[0]) * time_base
        # If the file gives no duration for the last frame, the frame lasts as long as the others do on average.
        if len(frames) > 1:
            interval = self.times[-1] / (len(frames) - 1)
        self.duration = float(self.times[-1] + (last_duration * time_base if last_duration else interval))

    def __del__(self):
        if self._opened:
            self._opened[0].close()

    def frames(self, indices) -> np.ndarray:
        """Returns the frames of the given indices, which may be in any order and repeat; each is decoded once.

        Frames look as players show them, see `display`. All have the size of the first frame of the video.

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
            images = [self._display.image(frame, self._first_frame) for frame in self._av_frames(distinct.tolist())]
            return np.stack([images[position] for position in inverse])

    def each(self, indices, *, one_limit: bool = False) -> Iterator[np.ndarray]:
        """Yields the frames of ascending indices, which may repeat, one at a time: (y, x, 3) uint8 as from `frames`.

        Each frame is decoded once, and only one is in memory.

        Args:
            indices: ascending indices of frames.
            one_limit: whether all frames together may take `limit_seconds`. By default each frame may take as long.

        Raises:
            IndexError, DecodeError: as in `frames`, when the frame is reached.
        """
        indices = np.asarray(indices, np.int64)
        if not (len(indices) and 0 <= indices[0] and indices[-1] < len(self.times) and (np.diff(indices) >= 0).all()):
            raise IndexError(
                f"{self._name} has {len(self.times)} frames, but the indices are {indices}. They must ascend."
            )
        av_frames = self._av_frames(np.unique(indices).tolist())
        deadline = time.monotonic() + self._limit if one_limit else None
        for _, group in itertools.groupby(indices.tolist()):
            with self._working(deadline):
                image = self._display.image(next(av_frames), self._first_frame)
            for _ in group:
                yield image
            del image  # before the next frame is decoded

    def info(self) -> Info:
        """Returns the properties of the file. Decodes the first frame.

        Raises:
            DecodeError: the first frame cannot be decoded or is damaged.
        """
        with self._working():
            return self._display.info(self._first_frame(), self._codec, self._audio)

    @contextlib.contextmanager
    def _working(self, deadline=None):
        """Converts errors of the file to DecodeError, and limits the time: to `deadline`, or from now to the limit."""
        self._deadline = deadline or time.monotonic() + self._limit
        try:
            with watch_call(self._name, self._limit):
                yield
        except av.ExitError as error:  # FFmpeg's read timed out
            raise self._too_long() from error
        except DECODER_ERRORS as error:
            is_size_known = self._display is None or self._display.is_size_known
            raise DecodeError(f"{self._name}: {error_reason(error, is_size_known)}.") from error

    def _too_long(self):
        return DecodeError(
            f"{self._name}: decoding takes longer than {self._limit:g} s. Raise data.limit_seconds, or make clips that "
            "decode fast with python -m input_pipeline.prepare."
        )

    def _open(self):
        """Returns the container and its video stream."""
        # Without the scheme, FFmpeg parses a name with a colon as a URL.
        source = f"file:{self._source}" if isinstance(self._source, str) else io.BytesIO(self._source)
        return open_container(source, self._name, limit_seconds=self._limit, strict=self._strict)

    def _packets(self, container, stream):
        # PyAV's generator leaks 150 bytes if it is not exhausted, so close it explicitly. PyAV 18 raises IndexError
        # after the last packet if a stream appeared while reading.
        with contextlib.closing(container.demux(stream)) as packets, contextlib.suppress(IndexError):
            for count, packet in enumerate(packets, start=1):
                if count > _MAX_FRAMES:
                    raise DecodeError(f"{self._name}: more than {_MAX_FRAMES} frames. Cut it into parts.")
                if time.monotonic() > self._deadline:
                    raise self._too_long()
                yield packet

    def _decode_timestamps(self):
        """Decodes all frames. Returns their [(pts, duration)] in the order in which the decoder outputs them."""
        container, stream = self._open()
        with container:
            return [(frame.pts, frame.duration) for frame in self._decoded(container, stream)]

    def _av_frames(self, wanted):
        """Yields PyAV's frames of ascending, distinct indices."""
        count = 0
        if self._pts is None:
            attempts = (self._by_count,)
        elif self._strict:
            # One attempt: the clips of this package have closed GOPs, so a seek that fails proves damage.
            attempts = (self._by_seeking,)
        else:
            # A seek may land too late, or in a GOP that refers to the GOP before. Fall back to an earlier seek, then to
            # decoding from the start.
            attempts = (self._by_seeking, lambda wanted: self._by_seeking(wanted, early=True), self._from_start)
        for attempt in attempts:
            for frame in attempt(wanted[count:]):
                count += 1
                yield frame
                del frame  # before the next frame is decoded, here and below: a frame of 4K video has 12 to 50 MB
            if count == len(wanted):
                return
        missing = wanted[count]
        raise DecodeError(f"{self._name}: frame {missing}, at {self.times[missing]:.2f} s, is damaged or missing.")

    def _first_frame(self):
        (first,) = self._av_frames([0])
        return first

    def _by_count(self, wanted):
        container, stream = self._open()
        with container:
            numbers = itertools.count()
            yield from _collect(map(lambda frame: (next(numbers), frame), self._decoded(container, stream)), wanted)

    def _from_start(self, wanted):
        container, stream = self._open()
        with container:
            frames = map(lambda frame: (frame.pts, frame), self._decoded(container, stream))
            yield from _collect(frames, [self._pts[index] for index in wanted])

    def _by_seeking(self, wanted, early=False):
        """Yields frames with one seek per GOP, up to the first frame that is missing or damaged."""
        (container, stream), self._opened = self._opened or self._open(), None
        wanted = [self._pts[index] for index in wanted]
        with container:
            for keyframe_index, group in itertools.groupby(
                wanted, lambda pts: bisect.bisect(self._keyframes, (pts, float("inf"))) - 1
            ):
                group_pts, count = list(group), 0
                try:
                    keyframe_pts, safe_target = self._keyframes[keyframe_index]
                    self._seek(container, stream, safe_target if early else keyframe_pts, safe_target)
                    frames = map(lambda frame: (frame.pts, frame), self._decoded(container, stream, set(group_pts)))
                    for frame in _collect(frames, group_pts):
                        count += 1
                        yield frame
                        del frame
                except av.InvalidDataError:  # not fatal: the frame counts as missing, and the next attempt retries it
                    if self._strict:
                        raise
                if count < len(group_pts):
                    return

    def _seek(self, container, stream, target, safe_target):
        """Seeks to `target`, or to `safe_target` if that seek lands too late."""
        container.seek(target, stream=stream)
        first = next(self._packets(container, stream))
        # Reading the packet consumed it, so seek again in both cases.
        landed_in_time = first.pts is not None and first.pts <= target
        container.seek(target if landed_in_time else safe_target, stream=stream)

    def _decoded(self, container, stream, wanted=None):
        """Yields all frames in presentation order. With `wanted`, frames whose pts is not in it may be skipped."""
        context = stream.codec_context
        for packet in self._packets(container, stream):
            if wanted and context.name == "h264":
                # Skip frames that no other frame refers to. Not in HEVC: there NONREF also skips frames that higher
                # temporal layers refer to.
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            frames = packet.decode()[::-1]
            self.decoded += len(frames)
            while frames:
                yield frames.pop()


def _collect(frames, wanted):
    """Yields the wanted frames in order, up to the first that is missing or damaged.

    Args:
        frames: iterable of (key, frame) in nearly ascending order. A key is an index or a pts.
        wanted: ascending keys.
    """
    wanted, remaining, decoded_early = set(wanted), collections.deque(wanted), {}
    is_damaged = False  # True from a damaged frame to the next keyframe, because later frames refer to it
    frames_past_next = 0  # consecutive frames after the next remaining one; after _MAX_REORDER of them it is missing
    for key, frame in frames:
        is_damaged = frame.is_corrupt or is_damaged and not frame.key_frame
        if key in wanted:
            if is_damaged:
                return
            decoded_early[key] = frame
        # Frames are rarely out of order: a decoder reads from the stream how many frames it must reorder.
        frames_past_next = frames_past_next + 1 if key is not None and key > remaining[0] else 0
        while remaining and remaining[0] in decoded_early:
            yield decoded_early.pop(remaining.popleft())
            frames_past_next = 0
        if not remaining or frames_past_next > _MAX_REORDER:
            return
        del frame

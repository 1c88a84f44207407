"""Reading a video from its beginning to its end, once: files of any length, cameras, and streams of a network.

`decode.Video` needs the times of all frames before it gives the first one, and refuses files that are damaged. A
`FrameStream` gives each frame with its time when it is decoded. What comes before a break can be used, the end need not
be known, and no more than one frame is in memory. For an undamaged file whose frames have times, the frames and the
times are those of `decode.Video`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import av
import numpy as np

from input_pipeline.containers import DECODER_ERRORS, error_reason, open_container
from input_pipeline.crop import container_margins
from input_pipeline.display import Display, stream_remarks
from input_pipeline.errors import DecodeError
from input_pipeline.frame_index import UNINDEXED_CODECS, UNINDEXED_FORMATS
from input_pipeline.mp4_index import claimed_bytes
from input_pipeline.orientation import Messages
from input_pipeline.paths import is_live, is_stream

_DEFAULT_RATE = 25  # frames per second; FFmpeg's default for streams that store none
_MAX_PAUSE = 600.0  # seconds; a longer step of the clock is a fault of the clock
_MAX_REPEAT = 1.0  # seconds; a smaller step back is that of a repeated or reordered time, after which the clock goes on
_MISSING_SECONDS = 1.0  # sound may be as much longer than the video
_ADVICE = (
    " If it is an MP4 file with its index at the end, and the server sends only whole files, download it, or write it "
    "with FFmpeg's -movflags +faststart."
)
_MAX_CLAIM = 100  # times the size of a file that its index may claim; a file that was cut claims more than its size


class Frame(NamedTuple):
    """A frame of a stream.

    Attributes:
        time: seconds from the first frame of the video.
        image: what the function `convert` of `FrameStream.frames` made of the frame, or None if the frame is damaged.
    """

    time: float
    image: np.ndarray | None


class FrameStream:
    """The frames of a video in the order in which they are shown, each decoded once.

    Args:
        address: a video file; or `0` for the first camera of the machine, `1` for the second; or an address that FFmpeg
            reads, such as `rtsp://HOST/PATH`, `udp://HOST:PORT` or `pipe:0` for the standard input; or `file:PATH` for
            a file that another program is still writing, which is read on as it grows.
        limit_seconds: time limit in seconds for opening the video and for each frame.

    Attributes:
        is_live: whether the video is not a file on a disk, or is still being written.
        rate: frames per second that the container gives, or None.
        length: seconds that the container gives, or None.
        end: seconds, the end of the last frame that was read.
        problem: why reading has ended too early, as a sentence, or ''.
        remarks: sentences on how the frames are read, where that is not obvious.

    Raises:
        DecodeError: the address cannot be opened, or holds no video.
    """

    def __init__(self, address: str, *, limit_seconds: float = 60.0):
        self._address, self._limit = address, limit_seconds
        self.is_live = is_live(address)
        self.end, self.problem, self._clock_faults, self._is_lost = 0.0, "", 0, False
        if not self.is_live:
            self._refuse_claims()
        self._container, self._stream = self._open()
        context = self._stream.codec_context
        size = context.width, context.height
        self._messages = Messages(self._stream.codec.canonical_name, context.extradata)
        margins = container_margins(self._container, self._stream)
        self._display = Display(address, size, self._stream.sample_aspect_ratio, self._messages, margins)
        self._first_size = SimpleNamespace(width=size[0], height=size[1])
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or 0) or None
        self.length = self._length()
        self._remarks = stream_remarks(context)

    @property
    def remarks(self) -> tuple[str, ...]:
        faults = self._clock_faults
        text = f"The times of {faults} frames do not ascend, or leap. They count as one frame after the frame before."
        return (*self._remarks, text) if faults else self._remarks

    def _refuse_claims(self):
        try:
            with open(self._address, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                claim = claimed_bytes(file, size)
        except OSError as error:
            raise DecodeError(f"{self._address}: {error.strerror}.") from error
        if claim > _MAX_CLAIM * size:
            raise DecodeError(f"{self._address}: the file is truncated.")

    def _open(self):
        address, format, options = self._address, None, {}
        if address.isdecimal():
            address = f"/dev/video{address}"
        if address.startswith("/dev/video"):
            format = "v4l2"
        elif address.startswith("file:"):
            # FFmpeg reads on at the end of the file, until the time limit. If it could seek, it would read the end, and
            # so wait there, before the first frame.
            options = {"follow": "1", "seekable": "0"}
        elif not is_stream(address):
            address = f"file:{address}"  # without the scheme, FFmpeg parses a name with a colon as a URL
        try:
            return open_container(
                address,
                self._address,
                limit_seconds=self._limit,
                format=format,
                options=options,
                playlists=self.is_live,
            )
        except av.ExitError as error:
            raise DecodeError(f"{self._address}: no data came for {self._limit:g} s.") from error
        except DECODER_ERRORS as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DecodeError(f"{address if format else self._address}: {reason}.") from error

    def _length(self):
        if self.is_live:
            return None
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def frames(self, convert: Callable[[np.ndarray], np.ndarray], start: float = 0.0) -> Iterator[Frame]:
        """Yields the frames from the one on screen at `start` seconds to the last. The stream can be read once.

        A frame is damaged if FFmpeg flags it as damaged, or if a frame before it in its group of pictures is flagged.
        If FFmpeg cannot read on, the frames end, and `problem` says why.

        Args:
            convert: a function of an image (y x 3), uint8 in red, green and blue, as players show it.
            start: seconds from the first frame of the video. What lies before is skipped by seeking, where the format
                has an index.

        Raises:
            DecodeError: no frame can be decoded.
        """
        found = 0
        for frame_time, frame, is_damaged in self._from(start):
            found += 1
            image = None if is_damaged else convert(self._display.image(frame, lambda: self._first_size))
            del frame  # before the next frame is decoded: a frame of 4K video has 12 to 50 MB
            yield Frame(frame_time, image)
        if not found and not start:
            advice = _ADVICE if self.problem and self._address.lower().startswith(("http:", "https:")) else ""
            raise DecodeError(f"{self._address}: {self.problem or 'no frame can be decoded'}.{advice}")

    def close(self) -> None:
        """Closes the container."""
        self._container.close()

    def _from(self, start):
        """Yields (time, frame, whether it is damaged) from the frame on screen at `start`."""
        before = None
        for entry in self._after_seek(start):
            if entry[0] <= start:
                before = entry  # on screen at `start`, unless another one follows
                continue
            if before:
                yield before
                before = None
            yield entry
            del entry
        if before and self.end > start:
            yield before

    def _after_seek(self, start):
        """Yields the entries of `_timed`, from a frame at or before `start` if there is one."""
        if start and self._can_seek():
            first = next(self._timed(), None)
            origin = None if first is None else first[1].pts
            del first
            if origin is not None and self._seek(origin, start):
                entries = self._timed(origin)
                for entry in entries:
                    # Before the first keyframe come frames that refer to what was skipped.
                    if entry[0] > start or entry[1].key_frame and not entry[2]:
                        break
                if self.end and entry[0] <= start:
                    yield entry
                    del entry
                    yield from entries
                    return
            self._reopen()
        yield from self._timed()

    def _can_seek(self):
        name = self._container.format.name
        return not (
            self.is_live
            or name in UNINDEXED_FORMATS
            or name.endswith("_pipe")
            or self._stream.codec_context.name in UNINDEXED_CODECS
        )

    def _seek(self, origin, start):
        """Seeks to a keyframe at or before `start` seconds after the pts `origin`. Returns False if that fails."""
        try:
            self._container.seek(origin + int(start / self._stream.time_base), stream=self._stream)
        except DECODER_ERRORS:
            return False
        return True

    def _reopen(self):
        self._container.close()
        self._container, self._stream = self._open()
        self.problem, self._clock_faults = "", 0

    def _timed(self, origin=None):
        """Yields (time, frame, whether it is damaged). `origin` is the pts at time 0; None is that of the first frame.

        A frame without a time, or whose time does not ascend or leaps, comes a mean interval after the frame before.
        """
        is_damaged, is_first, now = False, origin is None, None
        time_base, interval = float(self._stream.time_base), 1 / (self.rate or _DEFAULT_RATE)
        for count, frame in enumerate(self._decoded()):
            # From a damaged or lost frame to the next keyframe, because later frames refer to it.
            is_damaged = frame.is_corrupt or (is_damaged or self._is_lost) and not frame.key_frame
            self._is_lost = False
            if is_first and is_damaged and not frame.key_frame:
                continue  # a recording that begins within a group of pictures
            if is_first:
                self._first_size = SimpleNamespace(width=frame.width, height=frame.height)
                is_first, origin = False, self._pts(frame)
            pts = self._pts(frame)
            stamp = None if pts is None or origin is None else (pts - origin) * time_base
            if now is None:
                now = begin = known = stamp or 0.0
                first = count_known = count
            elif stamp is not None and now < stamp <= now + _MAX_PAUSE:
                now, known, count_known = stamp, stamp, count
                interval = (now - begin) / (count - first)
            else:
                self._clock_faults += pts is not None
                now = known + (count - count_known) * interval
                if stamp is None or abs(stamp - now) > _MAX_REPEAT:
                    origin = None if pts is None else pts - round(now / time_base)
            self.end = now + (float(frame.duration * time_base) if frame.duration else interval)
            yield now, frame, is_damaged
            del frame

    def _pts(self, frame):
        # AVI stores no times. If frames are reordered, the times that FFmpeg makes up do not ascend.
        is_made_up = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        return None if is_made_up else frame.pts

    def _decoded(self):
        """Yields the frames that FFmpeg decodes. Sets `problem` if it cannot read on."""
        try:
            deadline = time.monotonic() + self._limit
            # PyAV 18 raises IndexError after the last packet if a stream appeared while reading.
            with contextlib.closing(self._container.demux(self._stream)) as packets, contextlib.suppress(IndexError):
                for packet in packets:
                    if packet.size:
                        self._messages.read(packet)
                    frames = self._decode(packet)[::-1]
                    if frames:
                        deadline = time.monotonic() + self._limit
                    elif time.monotonic() > deadline:
                        self.problem = f"no frame came for {self._limit:g} s"
                        return
                    while frames:
                        yield frames.pop()
            self.problem = self._early_end()
        except av.ExitError:
            self.problem = f"no data came for {self._limit:g} s"
        except DECODER_ERRORS as error:
            self.problem = error_reason(error, self._display.is_size_known)

    def _decode(self, packet):
        try:
            if not packet.is_corrupt:
                return packet.decode()
        except av.InvalidDataError:
            pass
        self._is_lost = True
        return []

    def _early_end(self):
        """Returns why a file must have ended too early, or ''."""
        if self.is_live:
            return ""
        size = os.path.getsize(self._address)
        if any(entry.size and entry.pos + entry.size > size for entry in self._stream.index_entries):
            return "the file is truncated"
        if self.length and self.end < self.length - _MISSING_SECONDS:
            return f"the video ends after {self.end:.1f} s, although the file says {self.length:.1f} s"
        return ""

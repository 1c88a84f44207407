"""Exact frames of a video file, by index.

A first pass reads the packets without decoding them, for the presentation time (pts) of every frame and the
places where decoding can start. A second pass seeks to the keyframe at or before each wanted frame, decodes
forward, and recognises the frame by its pts. Indices computed from a nominal frame rate, and seeks by time
alone, return other frames than asked for when the rate varies or groups of pictures are open.
"""

import bisect
import contextlib
import io

import av
import numpy as np
from av.codec.context import ThreadType
from av.stream import Disposition

from input_pipeline.errors import DecodeError

# AVI stores no presentation times, and one packet of it may hold two frames; transport and program streams
# have no index to seek in; VP8 has packets that show nothing. All are decoded from the start and counted.
_UNINDEXED_FORMATS = {"avi", "mpegts", "mpeg"}
_UNINDEXED_CODECS = {"vp8"}


class Video:
    """The frames of one video file, numbered from 0 in the order in which they are shown.

    The file is open only while a method runs.

    Args:
      source: a path, or the content of a file as bytes.

    Attributes:
      times: (n,) float64, seconds from the first frame to each.
      duration: seconds, the end of the last frame.

    Raises:
      DecodeError: the file is missing, damaged, truncated (where the container tells: Matroska does not), or
        holds no video.
    """

    def __init__(self, source: str | bytes):
        self._source = source
        with self._open() as (container, stream):
            packets = [(p.pts, p.dts, p.duration, p.is_keyframe, p.is_discard)
                       for p in container.demux(stream) if p.size]
            if any(entry.pos + entry.size > container.size for entry in stream.index_entries):
                raise DecodeError(f"{self._name}: the file is truncated.")
            time_base, rate = stream.time_base, stream.average_rate or 25
            indexed = (container.format.name not in _UNINDEXED_FORMATS
                       and stream.codec_context.name not in _UNINDEXED_CODECS
                       and all(pts is not None for pts, *_ in packets))
            # Where each group of pictures starts: its pts, and the timestamp to seek to. Containers index by
            # dts or by pts; the smaller never lands after the keyframe.
            self._keyframes = sorted((pts, pts if dts is None else min(pts, dts))
                                     for pts, dts, _, key, _ in packets if key) if indexed else []
            # An edit list discards packets; frames before the first keyframe miss their reference.
            shown = sorted((pts, duration) for pts, _, duration, _, discard in packets
                           if self._keyframes and not discard and pts >= self._keyframes[0][0])
            self._pts = [pts for pts, _ in shown]
            last = shown[-1][1] if shown else None
        if not self._pts or len(set(self._pts)) != len(self._pts):
            self._pts = None
            with self._open() as (container, stream):
                decoded = [(frame.pts, frame.duration) for frame in container.decode(stream)]
            pts, last = [pts for pts, _ in decoded], decoded[-1][1] if decoded else None
            if None in pts or pts != sorted(set(pts)):
                pts, last, time_base = range(len(pts)), 1, 1 / rate
        else:
            pts = self._pts
        if not len(pts):
            raise DecodeError(f"{self._name}: no frame can be decoded.")
        self.times = (np.array(pts, np.float64) - pts[0]) * float(time_base)
        # Without a duration of its own the last frame stays as long as the others do on average.
        interval = self.times[-1] / (len(pts) - 1) if len(pts) > 1 else 1 / float(rate)
        self.duration = float(self.times[-1] + (last * float(time_base) if last else interval))

    def frames(self, indices) -> np.ndarray:
        """Decodes the frames of the given indices, in any order and with repeats, each once.

        Rotation that the file asks for is applied (in quarter turns), as players do.

        Returns:
          (n, y, x, 3) uint8, red, green, blue.

        Raises:
          IndexError: an index outside [0, len(times)).
          DecodeError: one of the frames cannot be decoded.
        """
        wanted, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if not (len(wanted) and 0 <= wanted[0] and wanted[-1] < len(self.times)):
            raise IndexError(f"{self._name} has {len(self.times)} frames; indices {indices}")
        if self._pts is None:
            images = self._by_count(wanted.tolist())
        else:
            wanted = [self._pts[index] for index in wanted]
            images = self._by_pts(wanted, seek=True)
            if len(images) < len(wanted):  # a seek has landed too late
                images = self._by_pts(wanted, seek=False)
        if len(images) < len(wanted):
            raise DecodeError(f"{self._name}: {len(wanted) - len(images)} of {len(wanted)} frames "
                              "cannot be decoded.")
        with self._errors():  # frames of several sizes do not stack
            return np.stack(images)[inverse]

    @property
    def _name(self):
        return self._source if isinstance(self._source, str) else f"video of {len(self._source)} bytes"

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"{self._name}: {type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _open(self):
        """The container and its video stream."""
        source = self._source if isinstance(self._source, str) else io.BytesIO(self._source)
        # Titles and comments in other encodings than UTF-8 are common and would not open otherwise.
        with self._errors(), av.open(source, metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise DecodeError(f"{self._name}: the file holds no video.")
            # Workers are as many as there are cores: threads of the decoder would only get in their way.
            streams[0].codec_context.thread_type = ThreadType.NONE
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]

    def _by_count(self, wanted):
        with self._open() as (container, stream):
            images = []
            for index, frame in enumerate(container.decode(stream)):
                if index == wanted[len(images)]:
                    images.append(_image(frame))
                    if len(images) == len(wanted):
                        break
        return images

    def _by_pts(self, wanted, seek):
        """The frames of ascending pts; fewer where some are not there after their place has come."""
        with self._open() as (container, stream):
            images, position, decoded = [], None, _decoded(container, stream, set(wanted))
            for pts in wanted:
                key, target = self._keyframes[bisect.bisect(self._keyframes, (pts, float("inf"))) - 1]
                if seek and (position is None or key > position):
                    container.seek(target, stream=stream)
                    decoded = _decoded(container, stream, set(wanted))
                for frame in decoded:
                    position = frame.pts
                    if position is not None and position >= pts:
                        break
                if position != pts:
                    break
                images.append(_image(frame))
        return images


def _decoded(container, stream, wanted):
    """Frames in the order in which they are shown, those in `wanted` and as many others as is convenient."""
    context = stream.codec_context
    for packet in container.demux(stream):
        if context.name == "h264":
            # Pictures that no other refers to need no decoding. (In HEVC the same mark leaves out pictures
            # that higher temporal layers refer to.)
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _image(frame):
    """RGB uint8 (h, w, 3), upright."""
    # One thread: FFmpeg would start as many as there are cores for every frame, at ten times the cost of a small one.
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    return np.rot90(rgb, round(frame.rotation / 90))  # counterclockwise both in FFmpeg and in NumPy

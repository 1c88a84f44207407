"""One video to one short H.264 clip that decodes fast and exactly: what `prepare` does with every video.

The clip has a constant rate, closed groups of a few frames, no B-frames, no sound, no rotation left to apply. Its
bytes are a function of the source's frames and the encoding alone.
"""

import dataclasses
import fractions
import hashlib
import io
import itertools
import os

import av
import cv2
import numpy as np
from av.codec.context import ThreadType

from input_pipeline.annotations import Record
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.shards import read_video
from input_pipeline.videos import open_video


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How clips are encoded.

    Attributes:
      short_side: pixels that the shorter side is scaled down to; never up.
      gop: frames of a group of pictures: to show one frame, at most so many are decoded.
      crf: x264's constant quality, from 0 (lossless) to 51.

    Raises:
      DataError: a field is out of range.
    """

    short_side: int = 256
    gop: int = 4
    crf: int = 23

    def __post_init__(self):
        for field, least, most in (("short_side", 16, 4096), ("gop", 1, 1000), ("crf", 0, 51)):
            if not least <= getattr(self, field) <= most:
                raise DataError(f"--{field} must be from {least} to {most}, but is {getattr(self, field)}.")

    def size(self, height, width) -> tuple[int, int]:
        """Height and width, even, of the clip of a video of that size."""
        scale = min(1.0, self.short_side / min(height, width))
        return tuple(max(2, round(side * scale) // 2 * 2) for side in (height, width))


@dataclasses.dataclass(frozen=True)
class Task:
    """A video to transcode and how; `frame_rate` is that of a folder of frames, see `videos.open_video`."""

    record: Record
    encoding: Encoding
    frame_rate: float = 30.0


def run(task: Task) -> tuple[dict, bytes | None]:
    """Transcodes one video of a list.

    Returns:
      What to note, and the clip: `name` and `label`, with `frames`, `fps`, `width`, `height`, `bytes`, `sha256`
      and `source_bytes`; or, for a video that cannot be decoded, with `path` and `reason`, and None for the clip.
    """
    try:
        facts, data = transcode(open_video(task.record, frame_rate=task.frame_rate), task.encoding)
        return {"name": task.record.name, "label": task.record.label, **facts, "source_bytes": _size(task.record)}, data
    except (DecodeError, OSError, av.FFmpegError, cv2.error, MemoryError) as error:
        return failed(task, f"{error}" or type(error).__name__), None


def failed(task: Task, reason: str) -> dict:
    """What to note of a video that gives no clip."""
    return {"name": task.record.name, "label": task.record.label, "path": task.record.path, "reason": reason}


def _size(record):
    if record.position is not None:
        return len(read_video(record.path, record.position))
    if os.path.isdir(record.path):
        return sum(entry.stat().st_size for entry in os.scandir(record.path))
    return os.path.getsize(record.path)


def transcode(video, encoding: Encoding) -> tuple[dict, bytes]:
    """Encodes a video, and decodes the result strictly.

    Args:
      video: with `times`, `duration` and `each(indices)` like `decode.Video`.

    Returns:
      Its `frames`, `fps` (a fraction as text), `width`, `height` (pixels), `bytes` and `sha256`; and an MP4 file.

    Raises:
      DecodeError: the video cannot be decoded.
    """
    if not 0 < video.duration < float("inf"):
        raise DecodeError(f"The video lasts {video.duration} seconds.")
    rate = frame_rate(len(video.times), video.duration)
    count = max(1, round(video.duration * rate))
    # The frame on screen in the middle of a new frame's time: where the rate was constant already, every frame
    # once, however coarsely its time is written.
    instants = (np.arange(count) + 0.5) / float(rate)
    indices = np.maximum(np.searchsorted(video.times, instants, side="right") - 1, 0)
    images = video.each(indices)
    first = next(images)
    height, width = encoding.size(*first.shape[:2])
    images = (_sized(image, height, width) for image in itertools.chain([first], images))
    data = _encode(images, rate, height, width, encoding)
    verify(data, rate, count, height, width)
    return {
        "frames": count,
        "fps": str(rate),
        "width": width,
        "height": height,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }, data


def frame_rate(count, duration) -> fractions.Fraction:
    """The constant rate, frames per second, of `count` frames in `duration` seconds.

    The whole rate or the one of television (x 1000 / 1001) that agrees with the duration to a millisecond, in
    which many containers count; otherwise the average as a simple fraction.
    """
    average = fractions.Fraction(count / duration)
    whole = fractions.Fraction(max(1, round(average)))
    usual = [rate for rate in (whole, whole * 1000 / 1001) if abs(count / rate - duration) < 0.001]
    simple = max(average.limit_denominator(1001), fractions.Fraction(1, 1001))
    return min(usual, key=lambda rate: abs(rate - average), default=simple)


def _sized(image, height, width):
    """A frame in the size of the clip; an odd row or column is cut off."""
    if max(image.shape[0] - height, image.shape[1] - width) == 1:
        image = image[:height, :width]
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _encode(images, rate, height, width, encoding):
    file = io.BytesIO()
    # bitexact: no version and no date in the file. One thread: with more, the bytes would depend on their number.
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264",
            rate=rate,
            options={
                "crf": str(encoding.crf),
                "preset": "medium",
                "tune": "fastdecode",
                "flags": "+bitexact",
                "x264-params": f"keyint={encoding.gop}:min-keyint={encoding.gop}:scenecut=0:open-gop=0:bframes=0:"
                "threads=1:lookahead-threads=1:colormatrix=smpte170m:range=tv",
            },
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def verify(data, rate, count, height, width):
    """Decodes a clip as strictly as FFmpeg can. Of clips with flipped bits some still pass, which their checksum tells.

    Raises:
      DecodeError: it has not `count` frames of that size, each at its time, all sound.
    """
    number = 0
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_type, stream.codec_context.thread_count = ThreadType.NONE, 1
            stream.codec_context.options = {"err_detect": "explode+aggressive"}
            for number, frame in enumerate(container.decode(stream), start=1):
                if (
                    frame.is_corrupt
                    or (frame.height, frame.width) != (height, width)
                    or frame.pts * frame.time_base != (number - 1) / rate
                ):
                    raise DecodeError(f"The transcoded clip is damaged at frame {number - 1}.")
    except DecodeError:
        raise
    except Exception as error:  # what PyAV makes of damage is of any type
        raise DecodeError(f"The transcoded clip is damaged after frame {number}: {error}") from error
    if number != count:
        raise DecodeError(f"The transcoded clip has {number} frames instead of {count}.")

"""Transcoding of one video to one H.264 clip that decodes fast and exactly. `prepare` calls it for every video.

A clip has a constant frame rate, short closed groups of pictures, no B-frames, no audio, square pixels, and no display
matrix. Its bytes depend only on the source file and the `Encoding`, given one version of FFmpeg and x264 and an x86
processor with AVX2. On other processors FFmpeg may round a colour conversion differently.
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
from input_pipeline.containers import DECODER_ERRORS, METADATA_OPTIONS
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.frame_rate import frame_rate
from input_pipeline.sampling import steady_times
from input_pipeline.shards import LABELS, read_video
from input_pipeline.videos import open_video, remarks

# One thread: with more, the bytes would depend on the number of threads. cpu-independent: x264 uses its C functions
# for "mbtree", the propagation of costs from frame to frame. The AVX-512 functions give other bytes, and not always the
# same bytes for the same frames on one machine: 34 of 16,100 clips differed without this option, 0 of 28,600 with it
# (libx264 of PyAV 18.1, AMD Zen 5).
_X264_PARAMS = (
    "scenecut=0:open-gop=0:bframes=0:threads=1:lookahead-threads=1:cpu-independent=1:colormatrix=smpte170m:range=tv"
)

# Damaged times could otherwise ask for any number of frames.
_MAX_RATE = 100_000  # frames per second
_MAX_REPEATED = 10_000  # frames of a clip that has over twice as many as its video


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The settings that clips are encoded with.

    Attributes:
        short_side: length in pixels that the shorter side is scaled down to. Smaller videos keep their size.
        gop: frames in a group of pictures. At most this many frames are decoded to reach one frame.
        crf: x264's constant rate factor, from 0 (lossless) to 51.

    Raises:
        DataError: a field is out of range.
    """

    short_side: int = 256
    gop: int = 4
    crf: int = 23

    def __post_init__(self):
        for field, low, high in (("short_side", 16, 4096), ("gop", 1, 1000), ("crf", 0, 51)):
            if not low <= getattr(self, field) <= high:
                raise DataError(f"--{field} must be from {low} to {high}, but is {getattr(self, field)}.")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width of the clip, both even, for a video of the given height and width."""
        scale = min(1.0, self.short_side / min(height, width))
        return tuple(max(2, round(side * scale) // 2 * 2) for side in (height, width))


@dataclasses.dataclass(frozen=True)
class Task:
    """One video to transcode. For `frame_rate` and `limit_seconds` see `videos.open_video`."""

    record: Record
    encoding: Encoding
    frame_rate: float = 30.0
    limit_seconds: float = 60.0


def run(task: Task) -> tuple[dict, bytes | None]:
    """Transcodes one video.

    Returns:
        The metadata and the clip. The metadata are `name`, `label`, `frames`, `fps`, `width`, `height`, `bytes`,
        `sha256` and `source_bytes`, also `labels` if the clip may have several, and `path` and `remarks` if
        `videos.remarks` has any. For a video that cannot
        be decoded they are `name`, `label`, `path` and `reason`, and the clip is None.
    """
    try:
        video = open_video(task.record, frame_rate=task.frame_rate, limit_seconds=task.limit_seconds)
        metadata, data = transcode(video, task.encoding)
        source_bytes = _source_bytes(task.record)
    except (DecodeError, *DECODER_ERRORS) as error:
        return failed(task, f"{error}" or type(error).__name__), None
    metadata = {"name": task.record.name, "label": task.record.label, **metadata, "source_bytes": source_bytes}
    if task.record.labels is not None:
        metadata[LABELS] = list(task.record.labels)
    if noted := remarks(video):
        metadata |= {"path": task.record.path, "remarks": " ".join(noted)}
    return metadata, data


def failed(task: Task, reason: str) -> dict:
    """Returns the metadata of a video without a clip."""
    return {"name": task.record.name, "label": task.record.label, "path": task.record.path, "reason": reason}


def _source_bytes(record):
    if record.position is not None:
        return len(read_video(record.path, record.position))
    if os.path.isdir(record.path):
        return sum(entry.stat().st_size for entry in os.scandir(record.path))
    return os.path.getsize(record.path)


def transcode(video, encoding: Encoding) -> tuple[dict, bytes]:
    """Encodes a video, then decodes the clip strictly to verify it.

    Args:
        video: object with `times`, `duration` and `each(indices)`, like `decode.Video`.
        encoding: settings of the encoder.

    Returns:
        The metadata and an MP4 file. The metadata are `frames`, `fps` (a fraction as text), `width` and `height`
        (pixels), `bytes` and `sha256`.

    Raises:
        DecodeError: the video or its clip cannot be decoded.
    """
    if not len(video.times) / _MAX_RATE < video.duration < float("inf"):
        raise DecodeError(f"The video lasts {video.duration} seconds, but has {len(video.times)} frames.")
    times, duration = steady_times(video.times, video.duration)
    rate = frame_rate(len(times), duration)
    count = max(1, round(duration * rate))
    if count > max(2 * len(times), _MAX_REPEATED):
        raise DecodeError(f"The video lasts {video.duration:g} seconds, but has {len(times)} frames.")
    # Each new frame is the source frame that is on screen at the middle of its interval. A video of constant rate then
    # keeps every frame exactly once, even if the container rounds its times coarsely.
    instants = (np.arange(count) + 0.5) / float(rate)
    indices = np.maximum(np.searchsorted(times, instants, side="right") - 1, 0)
    images = video.each(indices)
    first = next(images)
    height, width = encoding.size(*first.shape[:2])
    images = (_resized(image, height, width) for image in itertools.chain([first], images))
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


def _resized(image, height, width):
    """Returns a frame in the size of the clip. An odd last row or column is cropped instead of scaled."""
    if max(image.shape[0] - height, image.shape[1] - width) == 1:
        image = image[:height, :width]
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _encode(images, rate, height, width, encoding):
    file = io.BytesIO()
    # bitexact: the file holds no version and no date.
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264",
            rate=rate,
            options={
                "crf": str(encoding.crf),
                "preset": "medium",
                "tune": "fastdecode",
                "flags": "+bitexact",
                "x264-params": f"keyint={encoding.gop}:min-keyint={encoding.gop}:{_X264_PARAMS}",
            },
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def verify(data: bytes, rate: fractions.Fraction, count: int, height: int, width: int) -> None:
    """Decodes a clip as strictly as FFmpeg can.

    Some clips with flipped bits still decode without an error. The checksum of the record reveals those.

    Args:
        data: MP4 file.
        rate: expected frames per second.
        count: expected number of frames.
        height, width: expected size in pixels.

    Raises:
        DecodeError: a frame is damaged, missing, of another size, or not at its time.
    """
    number = 0
    try:
        with av.open(io.BytesIO(data), **METADATA_OPTIONS) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:  # there is no decoder for it
                raise DecodeError("The transcoded clip is damaged: it holds no video.")
            stream.codec_context.thread_type, stream.codec_context.thread_count = ThreadType.NONE, 1
            stream.codec_context.options = {"err_detect": "explode+aggressive"}
            for number, frame in enumerate(container.decode(stream), start=1):
                if (
                    frame.is_corrupt
                    or frame.pts is None
                    or (frame.height, frame.width) != (height, width)
                    or frame.pts * frame.time_base != (number - 1) / rate
                ):
                    raise DecodeError(f"The transcoded clip is damaged at frame {number - 1}.")
    except DECODER_ERRORS as error:
        raise DecodeError(f"The transcoded clip is damaged after frame {number}: {error}") from error
    if number != count:
        raise DecodeError(f"The transcoded clip has {number} frames instead of {count}.")

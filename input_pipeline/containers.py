"""Opening a video with PyAV: the container, and the stream of it that is shown."""

import io

import av
from av.codec.context import Flags, ThreadType
from av.stream import Disposition

from input_pipeline.display import MAX_PIXELS
from input_pipeline.errors import DecodeError

CODEC_OPTIONS = {"max_pixels": str(MAX_PIXELS)}

# PyAV 18 refuses titles that are not UTF-8, which are common, unless told otherwise. PyAV 19 lacks the argument.
METADATA_OPTIONS = {"metadata_errors": "replace"} if av.__version__.startswith("18.") else {}

# What PyAV 18 and 19 raised for 170,000 damaged files. Any other exception is an error of the program.
DECODER_ERRORS = (av.FFmpegError, OSError, MemoryError)

# FFmpeg opens these as videos, but they are ANSI-art text (tty) and playlists.
_NO_VIDEO_FORMATS = {"tty", "concat", "hls"}


def open_container(
    source: str | io.BytesIO,
    name: str,
    *,
    limit_seconds: float,
    strict: bool = False,
    format: str | None = None,
    options: dict[str, str] | None = None,
    playlists: bool = False,
):
    """Returns an open container and its video stream.

    Args:
        source: an address as FFmpeg reads it, such as `file:clip.mp4`, or the content of a file.
        name: name of the video in errors.
        limit_seconds: time limit in seconds for opening, and for each read.
        strict: refuse everything that FFmpeg finds doubtful.
        format: FFmpeg's name of the format or of the device. None: FFmpeg finds the format.
        options: more options of the format.
        playlists: whether a playlist is a video.

    Raises:
        DecodeError: there is no video, or no decoder for it.
    """
    container = av.open(
        source, format=format, options=CODEC_OPTIONS | (options or {}), timeout=limit_seconds, **METADATA_OPTIONS
    )
    try:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or container.format.name in _NO_VIDEO_FORMATS and not playlists:
            raise DecodeError(f"{name}: the file holds no video.")
        best = container.streams.best("video")  # as ffplay chooses; cover art may be the best
        stream = best if best in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise DecodeError(f"{name}: there is no decoder for its video.")
        # One thread: there is already one worker process per core.
        context.thread_type, context.thread_count = ThreadType.NONE, 1
        context.flags |= Flags.unaligned  # crops at the left too, which FFmpeg otherwise leaves out
        context.options = CODEC_OPTIONS | ({"err_detect": "explode+aggressive"} if strict else {})
    except BaseException:
        container.close()
        raise
    return container, stream


def error_reason(error: Exception, is_size_known: bool) -> str:
    """Returns why FFmpeg failed, without a full stop.

    Args:
        error: one of `DECODER_ERRORS`.
        is_size_known: whether FFmpeg found the size of the frames when it opened the file.
    """
    # FFmpeg does not say that frames are above max_pixels. It reports an invalid argument, or invalid data after it
    # found no size of the frames.
    if isinstance(error, av.ArgumentError) or not is_size_known:
        return f"its frames are damaged or have more than {MAX_PIXELS / 1e6:.0f} million pixels"
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"

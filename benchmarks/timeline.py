"""Time and memory of the windows of a long video.

Command: python -m benchmarks.timeline [--workdir=RUN] [--minutes=60] [--every=1.0] [--window=2.0]

Makes a video of 320 x 180 pixels at 25 frames per second, and predicts a window every `--every` seconds with the model
of a run. Without `--workdir`, the windows are cut for a model of 8 frames of 224 x 224 pixels, in one view, and not
predicted. Prints one JSON line: the seconds, the windows, and the resident memory after the first minute of the video
and at its peak after that.
"""

import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.arguments import parse
from benchmarks.measure import report
from benchmarks.soak import resident
from input_pipeline.annotations import Record

_RATE, _HEIGHT, _WIDTH = 25, 180, 320


def write_video(path: Path, minutes: float) -> None:
    """Writes a video of a square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 60, (_HEIGHT, _WIDTH, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = _WIDTH, _HEIGHT, "yuv420p", Fraction(1, _RATE)
        for number in range(round(minutes * 60 * _RATE)):
            picture = noise.copy()
            top, left = number % (_HEIGHT - 40), 3 * number % (_WIDTH - 40)
            picture[top : top + 40, left : left + 40] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_windows(path: str, args):
    """Returns the windows of the video, the function that predicts them, and their number in a batch."""
    if args.workdir:
        from vidformers import load
        from vidformers.inference.timeline.model import model_windows

        model = load(args.workdir)
        windows = model_windows(model, Record(0, path, 0, 0), args.every, args.window, 0.0, None)
        return windows, model.compute, model.batch_size
    from vidformers.inference.timeline.windows import Windows
    from vidformers.training.evaluate import EvalProtocol

    data = dict(num_classes=1, frames=8, size=224)
    windows = Windows(
        Record(0, path, 0, 0), data, EvalProtocol(crops=1), lambda: None, every=args.every, seconds=args.window
    )
    return windows, lambda video, index: (np.zeros((len(video), 1)), None), 8


def main():
    args = parse(__doc__, workdir=None, minutes=60.0, every=1.0, window=2.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        write_video(path, args.minutes)
        windows, compute, batch_size = make_windows(str(path), args)
        started, count, first, peak = time.perf_counter(), 0, 0, 0
        for window in windows.predictions(compute, batch_size):
            count += 1
            if window.end <= 60:
                first = resident()
            peak = max(peak, resident())
        seconds = time.perf_counter() - started
        size = path.stat().st_size
    report(
        benchmark="timeline",
        workdir=args.workdir,
        video={"minutes": args.minutes, "width": _WIDTH, "height": _HEIGHT, "rate": _RATE, "bytes": size},
        every=args.every,
        window=args.window,
        windows=count,
        seconds=seconds,
        bytes_after_first_minute=first,
        peak_bytes=peak,
        growth_bytes=peak - first,
        load=os.getloadavg(),
        av=av.__version__,
    )


if __name__ == "__main__":
    main()

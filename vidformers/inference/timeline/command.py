"""The command `--mode=predict --every=SECONDS`, and `--mode=predict` of a camera or stream."""

import os
import time
from contextlib import ExitStack, nullcontext
from typing import Any

from input_pipeline.annotations import Record
from input_pipeline.text import counted
from vidformers.errors import ConfigError, require
from vidformers.inference.commands import load_and_log
from vidformers.inference.predictor import Predictor
from vidformers.inference.timeline.folder import TimelineFolder, open_timeline
from vidformers.inference.timeline.model import model_segments, model_windows
from vidformers.inference.timeline.segments import Segment, Segments, WindowPrediction, clock
from vidformers.inference.timeline.windows import Windows
from vidformers.progress import Bar, log, table
from vidformers.training.stopping import StopSignal

FLAGS = ("every", "window", "from", "to", "threshold", "shortest")
_MAX_ROWS = 40  # of a table of segments; the files hold all of them
_SHOWN = 3  # classes in a line


def predict_timeline(
    config: dict[str, Any], workdir, video: str, out: str | None, flags: dict[str, str | None]
) -> None:
    """Predicts the windows of a video of any length, and the segments that they make.

    A camera or stream prints a line for each window until it ends or the command is interrupted. A file is predicted to
    its end. Interrupted, the same command continues, if there is an `out`.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        video: a video file, a folder of JPEG frames, a camera or a stream, see `input_pipeline.stream`.
        out: the folder that gets the files, see `timeline.folder`, or None.
        flags: the values of `FLAGS` that were given.
    Raises:
        ConfigError: a flag or the video cannot work, or `out` holds a timeline of other settings.
        DataError: `out` cannot be written to, or another command is writing it.
        Interrupted: a signal has stopped the reading of a camera or stream.
    """
    numbers = {name: _seconds(name, flags.get(name)) for name in FLAGS}
    every = 1.0 if numbers["every"] is None else numbers["every"]
    predictor = load_and_log(config, workdir)
    record = Record(0, video, 0, 0)
    windows = model_windows(predictor, record, every, numbers["window"], numbers["from"] or 0.0, numbers["to"])
    segments = model_segments(predictor, every, numbers["threshold"], numbers["shortest"])
    log(
        f"Predicting a window every {every:g} s of {video} with {workdir} at step {predictor.step}, "
        f"{predictor.protocol.name} views per window."
    )
    with ExitStack() as stack:
        stack.callback(windows.close)
        folder = None
        if out is not None:
            settings = _settings(predictor, windows, video, numbers | {"every": every})
            folder = stack.enter_context(open_timeline(out, settings, resumable=not windows.is_live))
        stop = StopSignal()
        with stop if windows.is_live else nullcontext():
            _run(predictor, windows, segments, folder, stop)
        found = segments.finish()
        if folder is not None and folder.count:
            folder.finish(found, _about(windows, segments))
        _report(found, segments, windows, folder)
        if stop.signal is not None:
            raise stop.interruption(
                f"Stopped reading {video}." + (f" {out} holds what was seen." if folder and folder.count else "")
            )
        require(segments.count > 0, windows.nothing)


def _seconds(name: str, text: str | None) -> float | None:
    """Returns the number that a flag holds. Raises ConfigError if it is none."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        unit = "a probability" if name == "threshold" else "seconds"
        raise ConfigError(f"--{name}={text} must be {unit}, a number such as 0.5.") from None


def _settings(predictor: Predictor, windows: Windows, video: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Returns what determines the windows, for `timeline.json`."""
    is_file = not windows.is_live and os.path.isfile(video)
    return {
        "video": video if windows.is_live else os.path.abspath(video),
        "bytes": os.path.getsize(video) if is_file else None,
        "every": numbers["every"],
        "window": windows.cutter.seconds if windows.cutter else numbers["window"],
        "from": numbers["from"] or 0.0,
        "to": numbers["to"],
        "step": predictor.step,
        "views": predictor.protocol.name,
        "classes": list(predictor.classes),
    }


def _about(windows: Windows, segments: Segments) -> dict[str, Any]:
    about: dict[str, Any] = {"threshold": segments.threshold, "shortest": segments.shortest}
    if windows.cutter is not None:
        about["window"] = windows.cutter.seconds  # of a stream, known when it is open
    return about if windows.source is None else about | {"problem": windows.source.problem, "dropped": windows.dropped}


def _run(
    predictor: Predictor, windows: Windows, segments: Segments, folder: TimelineFolder | None, stop: StopSignal
) -> None:
    """Predicts the windows that `folder` does not hold, and adds all of them to `segments`."""
    done, is_complete = (folder.count, folder.is_complete) if folder is not None else (0, False)
    for window in folder.windows() if folder is not None and done else ():
        segments.add(window)
    if folder is not None and done:
        log(f"The first {done} windows are there already.")
        last_start = folder.last.start
        is_complete = is_complete or windows.cutter is None or not windows.cutter.is_regular(last_start)
    if is_complete:
        return
    start = time.perf_counter()
    with nullcontext() if windows.is_live else Bar("windows", max(windows.count, done), done) as bar:
        for window in windows.predictions(
            predictor.compute, predictor.batch_size, done, lambda: stop.signal is not None
        ):
            best = [] if window.probabilities is None else predictor.best(window.probabilities)
            segments.add(window if folder is None else folder.append(window, best))
            if bar is None:
                log(_line(window, best))
            else:
                bar.advance()
    seconds = time.perf_counter() - start
    count = segments.count - done
    log(f"Predicted {counted(count, 'window')} in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} windows/s.")


def _line(window: WindowPrediction, best: list[tuple[str, float]]) -> str:
    classes = ", ".join(f"{name} {probability:.1%}" for name, probability in best[:_SHOWN])
    return f"{window.start:8.1f} to {window.end:.1f} s  {classes or 'a frame of the clip is damaged'}"


def _report(found: list[Segment], segments: Segments, windows: Windows, folder: TimelineFolder | None) -> None:
    """Prints the segments, and what was left out."""
    source = windows.source
    for remark in source.remarks if source is not None else ():
        log(remark)
    if source is not None and source.problem:
        log(f"Reading ended after {source.end:.1f} s: {source.problem}. What comes before is predicted.")
    if segments.damaged:
        log(f"{segments.damaged} windows have no prediction, because a frame of their clip is damaged.")
    if windows.dropped:
        log(
            f"{windows.dropped} windows were dropped, because the model is slower than the video. Raise --every, or "
            "lower eval.clips and eval.crops."
        )
    if found:
        rows = [
            (
                f"{clock(each.start, decimals=2)} to {clock(each.end, decimals=2)}",
                f"{each.end - each.start:.2f} s",
                each.name,
                f"{each.probability:.1%}",
            )
            for each in found[:_MAX_ROWS]
        ]
        table("segments" + (f", the first {_MAX_ROWS} of {len(found)}" if len(found) > _MAX_ROWS else ""), rows)
    elif segments.peak_window is not None:
        log(
            f"No segment of at least {segments.shortest:g} s reaches --threshold={segments.threshold:g} throughout. "
            f"The highest probability is {segments.peak:.1%}, at {segments.peak_window.centre:.1f} s."
        )
    if folder is not None and folder.is_complete:
        log(f"Wrote {folder.path}: {counted(folder.count, 'window')} and {counted(len(found), 'segment')}.")

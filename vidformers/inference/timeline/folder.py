"""The folder of `--mode=predict --every=SECONDS --out=DIR`.

`timeline.json` says what was predicted, and whether all windows are there. `windows.jsonl` gets a line for each window
as soon as it is predicted. A command that was stopped continues after the last line. When all windows are there,
`segments.jsonl`, `captions.vtt` and `timeline.png` are written, each as a whole.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from input_pipeline.files import write_bytes, write_lines, write_text
from input_pipeline.json_files import JsonError, parse_json, read_json
from input_pipeline.outputs import output_folder
from vidformers.errors import ConfigError, require
from vidformers.inference.timeline.picture import draw_timeline
from vidformers.inference.timeline.segments import Segment, WindowPrediction, captions

ABOUT, WINDOWS, SEGMENTS, CAPTIONS, PICTURE = (
    "timeline.json",
    "windows.jsonl",
    "segments.jsonl",
    "captions.vtt",
    "timeline.png",
)
_DIGITS = 6


class TimelineFolder:
    """The output of a timeline, see `open_timeline`.

    Attributes:
        path: the folder.
        count: number of windows that are written.
        is_complete: whether these are all windows.
        first, last: the first and the last of them, or None.
    """

    def __init__(self, path: Path, about: dict[str, Any], file: IO[bytes]):
        self.path, self._about, self._file = path, about, file
        self.is_complete, self.count = about["complete"], 0
        self.first: WindowPrediction | None = None
        self.last: WindowPrediction | None = None
        file.seek(0)
        size = 0
        for line in file:
            if not line.endswith(b"\n"):  # a killed process leaves an incomplete line
                break
            self._note(self._read(line))
            size += len(line)
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(size)

    def append(self, window: WindowPrediction, best: list[tuple[str, float]]) -> WindowPrediction:
        """Writes a window. `best` holds the likeliest classes.

        Returns:
            The window as `windows` yields it, with rounded numbers. Segments of these windows do not depend on whether
            the command was stopped and continued.
        """
        row: dict[str, Any] = {"start": round(window.start, _DIGITS), "end": round(window.end, _DIGITS)}
        if window.probabilities is None:
            row["error"] = "A frame of the clip is damaged."
        else:
            row["top"] = [{"class": name, "probability": round(value, _DIGITS)} for name, value in best]
            row["probabilities"] = [round(float(value), _DIGITS) for value in window.probabilities]
        line = json.dumps(row).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        return self._note(self._read(line))

    def _note(self, window: WindowPrediction) -> WindowPrediction:
        self.count, self.first, self.last = self.count + 1, self.first or window, window
        return window

    def windows(self) -> Iterator[WindowPrediction]:
        """Yields all windows that are written."""
        with open(self.path / WINDOWS, "rb") as file:
            yield from map(self._read, file)

    def finish(self, segments: list[Segment], about: dict[str, Any]) -> None:
        """Writes the other files. `about` is what `timeline.json` says beside the settings."""
        picture = draw_timeline(
            self.windows(),
            segments,
            tuple(self._about["classes"]),
            title=os.path.basename(self._about["video"]),
            start=self.first.start,
            end=self.last.end,
            every=self._about["every"],
        )
        write_lines(self.path / SEGMENTS, [json.dumps(_row(segment)) for segment in segments])
        write_text(self.path / CAPTIONS, captions(segments))
        write_bytes(self.path / PICTURE, picture)
        write_text(self.path / ABOUT, json.dumps(self._about | about | {"complete": True}, indent=1) + "\n")
        self.is_complete = True

    def _read(self, line: bytes) -> WindowPrediction:
        try:
            row = parse_json(line, {"start": (int, float), "end": (int, float)})
            values = row.get("probabilities")
            probabilities = None if values is None else np.array(values, np.float32)
            if probabilities is not None and probabilities.shape != (len(self._about["classes"]),):
                raise ValueError
        except (JsonError, ValueError, TypeError):
            raise ConfigError(f"{self.path / WINDOWS} does not hold windows. Give another --out.") from None
        return WindowPrediction(float(row["start"]), float(row["end"]), probabilities)


def _row(segment: Segment) -> dict[str, Any]:
    return {
        "class": segment.name,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "probability": round(segment.probability, _DIGITS),
        "peak": round(segment.peak, _DIGITS),
    }


@contextmanager
def open_timeline(path: str, settings: dict[str, Any], resumable: bool) -> Iterator[TimelineFolder]:
    """Opens and locks the folder of a timeline. Creates it, and removes it again if it stays empty.

    Args:
        path: the folder.
        settings: what determines the windows: all of `timeline.json` but the entries that `finish` adds. It has the
            entries `video`, `every` and `classes`.
        resumable: whether the windows that the folder holds are continued. Those of a live video are not.
    Raises:
        ConfigError: the folder holds windows of another video or of other settings.
        DataError: the folder cannot be written to, or another command is writing it.
    """
    folder = Path(path)
    with output_folder(path, "out"):
        is_new = not (folder / ABOUT).exists()
        require(
            not is_new or not (folder / WINDOWS).exists(),
            f"--out={path} holds a {WINDOWS} without a {ABOUT}. Give another folder.",
        )
        about = settings | {"complete": False} if is_new else _compare(folder, settings, resumable)
        write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
        try:
            with open(folder / WINDOWS, "a+b") as file:
                yield TimelineFolder(folder, about, file)
        finally:
            if is_new and (folder / WINDOWS).exists() and not os.path.getsize(folder / WINDOWS):
                (folder / WINDOWS).unlink()
                (folder / ABOUT).unlink()


def _compare(folder: Path, settings: dict[str, Any], resumable: bool) -> dict[str, Any]:
    """Returns what `timeline.json` says. Raises ConfigError if they are of other settings."""
    require(
        resumable, f"--out={folder} holds a timeline, and a camera or stream cannot be continued. Give a new folder."
    )
    try:
        stored = read_json(folder / ABOUT, {"complete": bool})
    except (OSError, JsonError):
        raise ConfigError(f"{folder / ABOUT} cannot be read or is damaged. Give another --out.") from None
    for name, value in json.loads(json.dumps(settings)).items():
        require(
            stored.get(name) == value,
            f"--out={folder} holds windows with other settings: {name} is {stored.get(name)!r} there and {value!r} "
            "now. Give another folder, or the same settings to continue.",
        )
    return stored

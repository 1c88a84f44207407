"""The file of `--mode=predict --out=FILE`, with one line of JSON per video. A repeated command appends to it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from input_pipeline.json_files import JsonError, parse_json
from input_pipeline.outputs import output_file
from vidformers.errors import ConfigError, require

_START = b'{"video": "'  # of every line


class PredictionFile:
    """A file of predictions that is open for appending.

    Attributes:
        count: the number of lines.
        num_decoded: the number of lines with a prediction. The others say why the video could not be decoded.

    Args:
        file: the file, open for reading and appending. An incomplete last line, which a killed process leaves, is
            removed.
        path: its path, for messages.
        videos: the paths of the videos to predict.
    Raises:
        ConfigError: the file does not hold predictions, or not of the first of these videos.
    """

    def __init__(self, file: IO[bytes], path: str, videos: list[str]):
        self._file, self.count, self.num_decoded = file, 0, 0
        file.seek(0)
        size, damaged = 0, ConfigError(f"--out={path} exists and does not hold predictions. Give another file.")
        for line in file:
            if not line.endswith(b"\n"):
                if line[: len(_START)] != _START[: len(line)]:
                    raise damaged
                break
            try:
                row = parse_json(line, {"video": str})
            except JsonError:
                raise damaged from None
            require(
                [row["video"]] == videos[self.count : self.count + 1],
                f"--out={path} holds predictions of other videos. Give another file.",
            )
            self._count(row)
            size += len(line)
        file.truncate(size)

    def append(self, row: dict[str, Any]) -> None:
        """Writes a line. `row` has the key `video`, and `top` or `error`."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self._count(row)

    def lines(self) -> Iterator[bytes]:
        """Yields all lines, each with its line break."""
        self._file.seek(0)
        yield from self._file

    def clear(self) -> None:
        """Removes all lines."""
        self._file.truncate(0)
        self.count = self.num_decoded = 0

    def _count(self, row: dict[str, Any]) -> None:
        self.count += 1
        self.num_decoded += "top" in row


@contextmanager
def open_predictions(path: str, videos: list[str]) -> Iterator[PredictionFile]:
    """Opens and locks the file of predictions `path`. Creates it, and removes it again if it stays empty.

    Raises:
        ConfigError: see `PredictionFile`.
        DataError: the file cannot be written, or another command is writing it.
    """
    with output_file(path, "out"):
        is_new = not os.path.exists(path)
        try:
            with open(path, "a+b") as file:
                yield PredictionFile(file, path, videos)
        finally:
            if is_new and os.path.exists(path) and not os.path.getsize(path):
                os.unlink(path)

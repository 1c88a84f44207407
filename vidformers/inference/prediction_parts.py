"""The predictions of very many videos in parts, which several machines write, and their merging.

`--shard=i/n` predicts the videos i, i + n, i + 2n, ... of the list and writes beside `--out` a file whose name ends in
`-0000i-of-0000n`. `--merge=true` writes `--out` from all parts, in the order of the list.
"""

import re
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.files import atomic_file
from input_pipeline.outputs import output_file
from vidformers.errors import ConfigError, require
from vidformers.inference.prediction_file import open_predictions

_MAX_LISTED = 5  # missing parts that a message names


class Part(NamedTuple):
    """Part `index` of `count` parts of a list."""

    index: int
    count: int

    def videos(self, videos: list[str]) -> list[str]:
        """Returns the videos of this part."""
        return videos[self.index :: self.count]

    def path(self, path: str) -> str:
        """Returns the path of this part of an output file."""
        whole = Path(path)
        return str(whole.with_name(f"{whole.stem}-{self.index:05d}-of-{self.count:05d}{whole.suffix}"))


def read_part(text: str) -> Part:
    """Returns the part that `--shard=i/n` names. Raises ConfigError if `text` is not of this form."""
    index, _, count = text.partition("/")
    require(
        index.isdecimal() and count.isdecimal() and int(index) < int(count) < 100_000,
        f"--shard={text} must be i/n with i from 0 to n - 1, such as --shard=0/4.",
    )
    return Part(int(index), int(count))


def merge_predictions(out: str, videos: list[str]) -> int:
    """Writes the predictions of all parts to `out`, in the order of `videos`. Returns how many videos were decoded.

    Raises:
        ConfigError: parts are missing, incomplete, or of other videos.
        DataError: `out` cannot be written, or another command is writing it or a part.
    """
    with ExitStack() as stack:
        stack.enter_context(output_file(out, "out"))
        parts = _find_parts(out, videos)
        files = [stack.enter_context(open_predictions(part.path(out), part.videos(videos))) for part in parts]
        _require_all(
            out, [part for part, file in zip(parts, files, strict=True) if file.count < len(part.videos(videos))]
        )
        lines = [file.lines() for file in files]
        with atomic_file(out) as temporary, open(temporary, "wb") as merged:
            for number in range(len(videos)):
                merged.write(next(lines[number % len(lines)]))
        return sum(file.num_decoded for file in files)


def merge_features(path: str, videos: list[str], save: Callable[[str, dict[str, np.ndarray]], None]) -> None:
    """Writes the features of all parts to `path`, in the order of `videos`, with `save(path, {video: features})`.

    Raises:
        ConfigError: parts are missing, damaged, or of other videos.
        DataError: `path` cannot be written, or another command is writing it.
    """
    with output_file(path, "features"):
        rows: dict[str, np.ndarray] = {}
        for part in _find_parts(path, videos):
            name = part.path(path)
            try:
                with np.load(name) as arrays:
                    rows |= zip(arrays["video"].tolist(), arrays["features"], strict=True)
            except (zipfile.BadZipFile, ValueError, KeyError, EOFError, TypeError, AttributeError):
                raise ConfigError(f"{name} does not hold features. Run the command of this part again.") from None
        require(rows.keys() <= set(videos), f"The parts of --features={path} hold features of other videos.")
        save(path, {video: rows[video] for video in videos if video in rows})


def _find_parts(path: str, videos: list[str]) -> list[Part]:
    """Returns all parts of an output file that hold videos. Raises ConfigError if one of them does not exist."""
    whole = Path(path)
    pattern = re.compile(re.escape(whole.stem) + r"-\d{5}-of-(\d{5})" + re.escape(whole.suffix))
    names = [match for match in map(pattern.fullmatch, (each.name for each in whole.parent.iterdir())) if match]
    counts = sorted({int(match[1]) for match in names})
    require(bool(counts), f"There are no parts of {path}. Write them with --shard=0/n to --shard=n-1/n first.")
    require(
        len(counts) == 1,
        f"There are parts of {path} for {' and '.join(f'n={count}' for count in counts)}. Remove those of one n.",
    )
    parts = [Part(index, counts[0]) for index in range(min(counts[0], len(videos)))]
    _require_all(path, [part for part in parts if not Path(part.path(path)).is_file()])
    return parts


def _require_all(path: str, missing: list[Part]) -> None:
    names = ", ".join(f"--shard={part.index}/{part.count}" for part in missing[:_MAX_LISTED])
    more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
    require(not missing, f"Parts of {path} are missing or incomplete. Run the command with {names}{more} first.")

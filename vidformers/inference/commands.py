"""Functions that the commands `predict`, `explain` and `export` share."""

import os
from collections.abc import Iterable, Iterator

import numpy as np

from input_pipeline.paths import is_address, is_stream
from input_pipeline.sources.csv import header_of, listed_part, part_name, split_part
from input_pipeline.sources.files import is_frame, is_video, read_lines, walk
from input_pipeline.sources.lists import path_before_label
from vidformers.errors import require
from vidformers.inference.predictor import Predictor
from vidformers.progress import log
from vidformers.training.scoring import NUM_BEST

_ADVICE = "Give a video, a folder, or a .txt or .csv list."


def load_and_log(config: dict, workdir) -> Predictor:
    """Returns the `Predictor` of a run and logs its remarks."""
    predictor = Predictor(config, workdir)
    for remark in predictor.remarks:
        log(remark)
    return predictor


def prediction_rows(predictor: Predictor, probabilities: np.ndarray) -> list[tuple[str, ...]]:
    """Returns the rows of a table of the likeliest classes.

    With several labels a video, the table marks those that are predicted, and has all of them.
    """
    predicted = len(predictor.predicted(probabilities)) if predictor.scoring.has_several_labels else 0
    best = predictor.best(probabilities, max(predicted, NUM_BEST))
    marks = [" predicted"] * predicted + [""] * (len(best) - predicted)
    return [(name, f"{probability:.1%}{mark}") for (name, probability), mark in zip(best, marks, strict=True)]


def find_videos(source: str, root: str = ".") -> list[str]:
    """Returns the paths of the videos that `--video` names.

    Args:
        source: a video, a folder of JPEG frames, a folder with videos of both kinds at any depth, or a .txt or .csv
            list with a path per line. A label after the path is ignored. Parts of videos, in a list with the columns
            `start,end` or as `PATH#t=START,END`, are returned in the second form.
        root: the folder to which the paths of a list are relative if there is no such file beside the list.
    Raises:
        ConfigError: `source` does not exist or holds no videos.
    """
    if os.path.isdir(source):
        videos = sorted(_videos_below(source))
    elif source.lower().endswith((".txt", ".csv")):
        videos = _listed_videos(source, root)
    else:
        require(
            os.path.exists(source) or not is_stream(source),
            f"--video={source} is an address or a camera, which --mode=predict reads. Give the path of a file.",
        )
        require(os.path.exists(split_part(source)[0]), f"--video={source} does not exist. {_ADVICE}")
        videos = [source]
    require(bool(videos), f"--video={source} holds no videos. {_ADVICE}")
    return videos


def _videos_below(source: str) -> Iterator[str]:
    """Yields the video files in a folder at any depth, and the folders that hold JPEG frames and no video file."""
    for folder, entries in walk(source):
        names = [entry.name for entry in entries]
        files = [name for name in names if is_video(name)]
        yield from (os.path.join(folder, name) for name in files)
        if not files and any(map(is_frame, names)):
            yield folder


def _listed_videos(source: str, root: str) -> list[str]:
    is_csv, folders = source.lower().endswith(".csv"), (os.path.dirname(source), root)
    lines = read_lines(source, advice=_ADVICE)
    columns = header_of(lines[0][1]) if is_csv and lines else ()
    videos = []
    for number, line in lines[bool(columns) :]:
        # A line that is a path may hold blanks and commas.
        if whole := _first_file(folders, line):
            videos.append(whole)
        elif is_csv:
            name, start, end = listed_part(source, number, line, columns)
            videos.append(part_name(_first_file(folders, name) or _absent(folders, name), start, end))
        else:
            videos.append(_first_file(folders, path_before_label(line)) or _absent(folders, line))
    return videos


def _absent(folders: tuple[str, ...], name: str) -> str:
    """Returns the path that messages on an absent video name. An address stays as it is written."""
    return name if is_address(name) else os.path.join(folders[0], name)


def _first_file(folders: Iterable[str], name: str) -> str | None:
    """Returns the path of a file or folder in the first of the folders that has it, or None."""
    return next((path for folder in folders if os.path.exists(path := os.path.join(folder, name))), None)


def require_decoded(count: int, source: str) -> None:
    """Raises ConfigError if none of the videos of `--video` could be decoded."""
    require(count > 0, f"None of the videos of --video={source} could be decoded. The messages above say why.")

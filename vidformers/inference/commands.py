"""Functions that the commands `predict`, `explain` and `export` share."""

import os

from input_pipeline.sources.files import is_video, read_lines
from vidformers.errors import require
from vidformers.inference.predictor import Predictor
from vidformers.progress import log


def load_and_log(config: dict, workdir) -> Predictor:
    """Returns the `Predictor` of a run and logs its remarks."""
    predictor = Predictor(config, workdir)
    for remark in predictor.remarks:
        log(remark)
    return predictor


def find_videos(source: str) -> list[str]:
    """Returns the paths of the videos that `--video` names.

    Args:
        source: a video, a folder, which is searched at any depth, or a .txt or .csv list with a path per line.
    Raises:
        ConfigError: `source` does not exist or holds no videos.
    """
    if os.path.isdir(source):
        videos = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(source)
            for name in names
            if is_video(name) and not name.startswith(".")
        )
    elif source.endswith((".txt", ".csv")):
        folder = os.path.dirname(source)
        videos = [
            os.path.join(folder, line)
            for _, line in read_lines(source, advice="Give a video, a folder or a .txt list.")
        ]
    else:
        require(os.path.exists(source), f"--video={source} does not exist. Give a video, a folder or a .txt list.")
        videos = [source]
    require(bool(videos), f"--video={source} holds no videos. Give a video, a folder or a .txt list.")
    return videos


def require_decoded(count: int, source: str) -> None:
    """Raises ConfigError if none of the videos of `--video` could be decoded."""
    require(count > 0, f"None of the videos of --video={source} could be decoded. The messages above say why.")

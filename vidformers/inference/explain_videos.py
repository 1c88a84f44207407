"""The command `--mode=explain`."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from input_pipeline.files import stem, write_bytes
from input_pipeline.outputs import output_folder
from input_pipeline.sources.csv import part_name, split_part
from input_pipeline.text import counted
from vidformers.errors import ConfigError, require
from vidformers.inference.clip import Clip
from vidformers.inference.commands import find_videos, load_and_log, prediction_rows, require_decoded
from vidformers.inference.explain.explainer import Explanation, draw_beside
from vidformers.inference.predictor import Predictor, clip_differences, load, load_export
from vidformers.progress import log, table
from vidformers.training.run_json import read_run_json

_MAX_TABLES = 10  # with more videos, the predictions are not printed


def explain(
    config: dict[str, Any],
    workdir,
    video: str,
    out: str,
    target: str | None = None,
    layer: str | None = None,
    beside: str | None = None,
) -> None:
    """Writes a folder per video with the relevance of its patches and frames for a class.

    `relevance.png` shows the frames above both relevance maps and the map of each head. `relevance.mp4` shows the
    frames and both maps side by side. `time.png` is written for models with a temporal encoder, and `dictionary.png`
    for models with a dictionary. `beside.png` shows both maps of two models. `explanation.npz` and `explanation.json`
    hold the numbers.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        video: a video, a folder or a list, see `find_videos`.
        out: the folder that gets the folders of the videos.
        target: the class to explain, or None for the likeliest class of each video.
        layer: the number of the temporal layer that `time.png` shows, from 1 on, or None for the last one.
        beside: the folder of another run, or of an export, whose relevance `beside.png` shows for the same clip and
            class, or None.
    Raises:
        ConfigError: there is no checkpoint or no video, `target` is not a class, the model has no such layer, the
            model in `beside` cannot explain the same clip, or no video could be decoded.
        DataError: `out` cannot be written to, or another command is writing it.
    """
    videos = find_videos(video, config["data"]["root"])
    folders = _folders(out, videos)
    require(
        layer is None or layer.isdecimal(), f"--layer={layer} must be the number of a layer of the temporal encoder."
    )
    number_of_layer = None if layer is None else int(layer)
    with output_folder(out, "out"):
        predictor = load_and_log(config, workdir)
        other = None if beside is None else _load_beside(beside, config, predictor)
        predictor.explainer.require_class(target)
        predictor.explainer.require_layer(number_of_layer)
        log(f"Explaining {counted(len(videos), 'video')} with {workdir} at step {predictor.step}.")
        num_decoded = 0
        for folder, clip in zip(folders, predictor.clips(videos), strict=True):
            if clip.error:
                log(f"Skipped a video that cannot be decoded: {clip.error}")
                continue
            num_decoded += 1
            explanation = predictor.explainer(clip, target)
            if len(videos) <= _MAX_TABLES:
                table(clip.video, prediction_rows(predictor, explanation.probabilities))
            files = explanation.files(number_of_layer)
            if other is not None:
                both = {str(workdir): explanation, str(beside): _explain_beside(str(beside), other, clip, explanation)}
                files["beside.png"] = draw_beside(both)
            _write(folder, files)
            log(f"Wrote {folder}: the relevance for the class {explanation.target}.")
        require_decoded(num_decoded, video)


def _folders(out: str, videos: list[str]) -> list[Path]:
    """Returns the folder of each video in `out`. Its name is that of the video, and is unique.

    If several videos have one name, or a name cannot be that of a folder, the number of the video precedes it.
    """
    stems = list(map(_name, videos))
    numbered = [f"{number:04d}_{stem(Path(name))}" for number, name in enumerate(stems)]
    counts = Counter(stems) + Counter(numbered)
    folders = [
        Path(out) / (name if counts[name] == 1 and name not in (".", "..") else with_number)
        for name, with_number in zip(stems, numbered, strict=True)
    ]
    for folder in folders:
        require(folder.is_dir() or not folder.exists(), f"{folder} is not a folder. Give another --out.")
    return folders


def _name(video: str) -> str:
    """Returns the name of a video without the suffix, such as `match`, or `match#t=12.5,14` for a part of it."""
    path, start, end = split_part(video)
    return part_name(Path(path).name if os.path.isdir(path) else Path(path).stem, start, end)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)


def _load_beside(folder: str, config: dict[str, Any], predictor: Predictor) -> Predictor:
    """Returns the model of another run, or of an export, which must take the clips of `predictor`."""
    if (Path(folder) / "run.json").is_file():
        other = load(folder)
        for field, trained, given in clip_differences(read_run_json(folder)["config"], config):
            log(f"--beside={folder} was trained with data.{field}={trained!r}, not {given!r} as its clips here.")
    elif (Path(folder) / "config.json").is_file():
        other = load_export(folder, config)
    else:
        raise ConfigError(f"--beside={folder} holds neither a run, with a run.json, nor an export, with a config.json.")
    other.explainer.require_clips_of(predictor.explainer.clip_shape, f"--beside={folder}")
    return other


def _explain_beside(folder: str, other: Predictor, clip: Clip, explanation: Explanation) -> Explanation:
    """Returns the other model's explanation of a clip for the same class."""
    require(
        explanation.target in other.classes,
        f"--beside={folder} has no class {explanation.target!r}. Set --target to a class of both models.",
    )
    return other.explainer(clip, explanation.target)

"""The command `--mode=explain`."""

from pathlib import Path
from typing import Any

from input_pipeline.files import write_bytes
from vidformers.inference.commands import find_videos, load_and_log
from vidformers.progress import log, table

_MAX_TABLES = 10  # with more videos, the predictions are not printed


def explain(config: dict[str, Any], workdir, video: str, out: str, target: str | None = None) -> None:
    """Writes a folder per video with the relevance of its patches and frames for a class.

    `relevance.png` shows the frames above both relevance maps and the map of each head. `relevance.mp4` shows the
    frames and both maps side by side. `time.png` is written for models with a temporal encoder, and `dictionary.png`
    for models with a dictionary. `explanation.npz` and `explanation.json` hold the numbers.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        video: a video, a folder or a list, see `find_videos`.
        out: the folder that gets the folders of the videos.
        target: the class to explain, or None for the likeliest class of each video.
    Raises:
        ConfigError: there is no checkpoint or no video, or `target` is not a class.
    """
    videos = find_videos(video)
    predictor = load_and_log(config, workdir)
    log(f"Explaining {len(videos)} videos with {workdir} at step {predictor.step}.")
    predictor.explainer.require_class(target)
    names = [Path(path).stem for path in videos]
    for number, (name, clip) in enumerate(zip(names, predictor.clips(videos), strict=True)):
        if clip.error:
            log(f"Skipped a video that cannot be decoded: {clip.error}")
            continue
        explanation = predictor.explainer(clip, target)
        folder = Path(out) / (name if names.count(name) == 1 else f"{number:04d}_{name}")
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in explanation.files().items():
            write_bytes(folder / file, content)
        if len(videos) <= _MAX_TABLES:
            best = predictor.best(explanation.probabilities)
            table(clip.video, [(label, f"{probability:.1%}") for label, probability in best])
        log(f"Wrote {folder}: the relevance for the class {explanation.target}.")

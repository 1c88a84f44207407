"""Messages and results for the user: notes on the data, a table of pretrained weights, closing table and pictures."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from input_pipeline.text import one_line
from vidformers.pretrained import Pretrained
from vidformers.progress import log, table
from vidformers.training.checkpoint_folder import CheckpointFolder
from vidformers.training.evaluate import EvalResult
from vidformers.training.metrics import draw_confusion, draw_curves, read_metrics
from vidformers.training.setup import Setup

_SLOW_DATA = 0.05  # share of the time spent waiting for data above which the progress line says so
_VERY_SLOW_DATA = 0.5  # and above which the end of a training says what helps
_PERCENTAGES = ("top1", "top5", "mean_class_top1", "mAP")


def print_report(pretrained: Pretrained) -> None:
    """Prints a table of all parameters with the origin of each."""
    counts = ", ".join(f"{count} {how}" for how, count in pretrained.counts.items())
    table(
        f"{pretrained.file.path}, a {pretrained.layout}: {counts}",
        [(row.parameter, row.how, row.note) for row in pretrained.origins]
        + [(name, "unused", "") for name in pretrained.unused],
    )
    for remark in pretrained.remarks:
        log(remark)


def data_notes(setup: Setup, workdir: Path) -> Iterator[str]:
    """Yields sentences about the data: missing and excluded videos, and settings that may mislead."""
    yield from setup.remarks
    for manifest in (setup.pipeline.train_manifest, setup.pipeline.val_manifest):
        if manifest.missing:
            yield (
                f"{len(manifest.missing)} of {len(manifest.missing) + len(manifest.records)} videos of "
                f"{manifest.path} are missing. {workdir}/run.json lists them."
            )
        if manifest.excluded:
            yield f"{len(manifest.excluded)} videos of {manifest.path} are excluded by data.exclude."
    repeats, batch_size = setup.pipeline.repeats, setup.train_config.batch_size
    if repeats > 1:
        yield (
            f"A batch of {batch_size} clips holds {batch_size // repeats} videos with {repeats} clips of each "
            f"(data.repeats). An epoch takes {repeats} times as many steps."
        )


def status_line(logged: dict) -> str:
    """Returns the text beside the progress bar for the metrics of a log line."""
    top1 = f"top-1 {logged['train/top1']:.1%}  " if "train/top1" in logged else ""
    mfu = f"MFU {logged['train/mfu']:.1%}  " if "train/mfu" in logged else ""
    slow = "  (reading is slower than training)" if logged["train/data_wait"] > _SLOW_DATA else ""
    return (
        f"loss {logged['train/loss']:.3f}  {top1}"
        f"{logged['train/clips_per_second']:.0f} clips/s  {mfu}"
        f"{logged['train/frames_per_second']:.0f} decoded frames/s  "
        f"data wait {logged['train/data_wait']:.1%}{slow}"
    )


def print_summary(
    setup: Setup, workdir: Path, result: EvalResult, seconds: dict[str, float], steps: int, best: str
) -> None:
    """Prints the closing table of a run, and whether an earlier evaluation was better.

    Args:
        result: the last evaluation.
        seconds: {phase: seconds}.
        steps: the number of steps since the start or the resume.
        best: the metric by which a checkpoint is kept as the best one.
    """
    rows = result_rows(result)
    if steps:
        clips = steps * setup.train_config.batch_size
        rows += [("clips/s in training", f"{clips / seconds['training']:.0f}")]
    rows += [(phase, f"{value:.1f} s") for phase, value in seconds.items()]
    table(str(workdir), rows)
    logged = read_metrics(workdir)
    _log_best(workdir, logged, best)
    _log_data_wait(logged, setup.pipeline.source)


def _log_best(workdir: Path, logged: list[dict], metric: str) -> None:
    """Logs at which step `metric` was highest, if this was not the last evaluation and its checkpoint is kept."""
    rows = [row for row in logged if metric in row]
    best = max(rows, key=lambda row: (row[metric], row["step"]), default=None)  # as `Checkpoints` chooses
    kept = CheckpointFolder(workdir / "checkpoints").steps()
    if best is not None and best[metric] > rows[-1][metric] and best["step"] in kept:
        log(
            f"{metric} was highest at step {best['step']}: {_metric_text(metric, best[metric])}. In the other modes, "
            "--config.eval.checkpoint=best takes this checkpoint."
        )


def _log_data_wait(logged: list[dict], source: str) -> None:
    """Logs what makes the data faster, if training waited for them most of the time."""
    waits = [row["train/data_wait"] for row in logged if "train/data_wait" in row]
    if waits and (share := sum(waits) / len(waits)) > _VERY_SLOW_DATA:
        advice = "More cores (data.workers) or a larger data.repeats help"
        if source != "shards":
            advice = f"python -m input_pipeline.prepare makes videos that decode faster. {advice}"
        log(f"Training waited for data in {share:.0%} of the time. {advice} (docs/own-videos.md#long-or-large-videos).")


def draw_run(setup: Setup, workdir: Path, result: EvalResult) -> None:
    """Draws the curves of a run and the confusion matrix of its last evaluation.

    A failure is logged, see `_drawing`.
    """
    with _drawing(workdir / "curves.png"):
        draw_curves(workdir)
    draw_result(setup, workdir, result)


def draw_result(setup: Setup, workdir: Path, result: EvalResult) -> None:
    """Draws the confusion matrix of an evaluation by the protocol of the config section `eval`.

    With several labels a video there is no confusion matrix. A failure is logged, see `_drawing`.
    """
    confusion = setup.scoring.confusion(result.videos)
    if confusion is None:
        return
    title = f"top-1 {result.metrics[f'val/top1@{setup.protocol.name}']:.1%} ({setup.protocol.name} views)"
    with _drawing(workdir / "confusion.png"):
        draw_confusion(workdir, confusion, setup.pipeline.class_names, title)


@contextmanager
def _drawing(path: Path) -> Iterator[None]:
    """Logs an error that occurs while a picture is drawn. The results are already saved, so the command succeeds."""
    try:
        yield
    except Exception as error:
        log(f"{path} was not drawn ({type(error).__name__}: {one_line(error)}). All results are saved.")


def result_rows(result: EvalResult) -> list[tuple[str, str]]:
    """Returns the rows of a table of the metrics."""
    return [(name, _metric_text(name, value)) for name, value in result.metrics.items()]


def _metric_text(name: str, value: float) -> str:
    return f"{value:.2%}" if name.partition("/")[2].split("@")[0] in _PERCENTAGES else f"{value:g}"


def result_json(setup: Setup, step: int, result: EvalResult) -> str:
    """Returns the content of `eval_*.json`.

    It holds the step, `root` with the folder of the videos, the metrics, the metrics of each class, and the confusion
    matrix.
    """
    names, rows = setup.pipeline.class_names, result.classes or setup.scoring.class_metrics(result.videos)
    content = {"step": step, "root": setup.config["data"]["root"], **result.metrics, "skipped": result.skipped}
    content["classes"] = [{"class": name, **row} for name, row in zip(names, rows, strict=True)]
    confusion = setup.scoring.confusion(result.videos)
    if confusion is not None:
        content["confusion"] = confusion.tolist()
    return json.dumps(content) + "\n"

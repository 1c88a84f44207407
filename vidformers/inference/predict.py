"""The command `--mode=predict`."""

import io
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.files import write_bytes
from input_pipeline.outputs import output_file, require_space
from input_pipeline.paths import is_live
from input_pipeline.text import counted
from vidformers.errors import require
from vidformers.inference.commands import find_videos, load_and_log, prediction_rows, require_decoded
from vidformers.inference.prediction_file import open_predictions
from vidformers.inference.prediction_parts import merge_features, merge_predictions, read_part
from vidformers.inference.predictor import Prediction, Predictor
from vidformers.inference.timeline.command import predict_timeline
from vidformers.progress import Bar, log, table

_MAX_TABLES = 10  # with more videos, the predictions are not printed


def predict(
    config: dict[str, Any],
    workdir,
    video: str,
    out: str | None = None,
    features: str | None = None,
    shard: str | None = None,
    merge: str | None = None,
    **timeline: str | None,
) -> None:
    """Predicts the classes of videos, or those of the windows of one video, see `timeline.command`.

    Prints a table per video if there are at most 10 videos. After an interrupt, the same command continues after the
    last prediction in `out`. With `features`, it predicts all videos again.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        video: a video, a folder or a list, see `find_videos`.
        out: a file that gets a line of JSON per video.
        features: an .npz file that gets the inputs of the head, see `save_features`.
        shard: 'i/n' predicts part i of n of the videos, see `prediction_parts`.
        merge: 'true' writes `out` and `features` from all parts.
        timeline: the flags of `timeline.command.FLAGS`. `every` predicts windows, as does a camera, a stream or a pipe.
    Raises:
        ConfigError: there is no checkpoint or no video, `out` does not hold predictions of these videos, or no video
            could be decoded.
        DataError: a file cannot be written, or another command is writing it.
    """
    if timeline.get("every") is not None or is_live(video):
        for name, value in (("features", features), ("shard", shard), ("merge", merge)):
            require(value is None, f"--{name} is not for the windows of a video. Leave it out, or leave out --every.")
        predict_timeline(config, workdir, video, out, timeline)
        return
    for name, value in timeline.items():
        require(value is None, f"--{name}={value} is for the windows of a video. Add --every=SECONDS.")
    require(
        out is None or not out.lower().endswith((".csv", ".tsv")),
        f"--out={out} would hold lines of JSON, which are no table. Give it a name that ends with .jsonl.",
    )
    videos = find_videos(video, config["data"]["root"])
    require(out is None or out != features, f"--out={out} and --features={features} must be different files.")
    require(merge in (None, "true", "false"), f"--merge={merge} must be true or false.")
    if merge == "true":
        require(shard is None, "--shard=i/n cannot be combined with --merge=true. First write all parts, then merge.")
        _merge(videos, video, out, features)
        return
    part = None if shard is None else read_part(shard)
    if part is not None:
        require(out is not None, f"--shard={shard} needs --out=FILE.jsonl.")
        videos, out, features = part.videos(videos), part.path(str(out)), features and part.path(features)
    if videos:
        _predict(config, workdir, videos, out, features, source=None if part else video)
    if part is not None:
        log(
            f"The {len(videos)} predictions of --shard={shard} are written. When all {part.count} parts are, run the "
            "command once with --merge=true in place of --shard."
        )


def _predict(config, workdir, videos: list[str], out: str | None, features: str | None, source: str | None) -> None:
    """Predicts `videos`. If `source` is given, the value of --video, at least one of them must be decoded."""
    with ExitStack() as stack:
        if features:
            stack.enter_context(output_file(features, "features"))
        output = stack.enter_context(open_predictions(out, videos)) if out else None
        predictor = load_and_log(config, workdir)
        if output and features:
            output.clear()
        done = output.count if output else 0
        log(
            f"Predicting {counted(len(videos) - done, 'video')} with {workdir} at step {predictor.step}, "
            f"{predictor.protocol.name} views per video." + (f" {out} already holds the first {done}." if done else "")
        )
        feature_rows: dict[str, np.ndarray] = {}
        count, num_bad, start = 0, 0, time.perf_counter()
        with Bar("predict", len(videos), done) as bar:
            for prediction in predictor.predict_many(videos[done:]):
                count += 1
                row = _report(predictor, prediction, print_table=len(videos) <= _MAX_TABLES)
                if output:
                    output.append(row)
                if prediction.features is None:
                    num_bad += 1
                elif features:
                    if not feature_rows:
                        require_space(features, prediction.features.nbytes * len(videos), "features")
                    feature_rows[prediction.video] = prediction.features
                bar.advance()
        seconds = time.perf_counter() - start
        sentences = []
        if num_bad < count or not count:
            rate = f"{count / seconds:.1f} videos/s"
            sentences.append(f"Predicted {counted(count - num_bad, 'video')} in {seconds:.1f} s, {rate}.")
        if num_bad:
            sentences.append(f"{counted(num_bad, 'video')} could not be decoded.")
        if out:
            sentences.append(f"Wrote {out}.")
        log(" ".join(sentences))
        if source is not None:
            require_decoded(output.num_decoded if output else count - num_bad, source)
        if features:
            save_features(features, feature_rows)


def _merge(videos: list[str], source: str, out: str | None, features: str | None) -> None:
    """Writes `out` and `features` from their parts. At least one of the videos must have been decoded."""
    require(out is not None, "--merge=true needs --out=FILE.jsonl, that of the parts.")
    num_decoded = merge_predictions(str(out), videos)
    if features:
        merge_features(features, videos, save_features)
    log(f"Wrote {out}: the predictions of {counted(len(videos), 'video')}, of which {num_decoded} could be decoded.")
    require_decoded(num_decoded, source)


def _report(predictor: Predictor, prediction: Prediction, print_table: bool) -> dict[str, Any]:
    """Prints a prediction, and returns the object that `--out` holds for it."""
    if prediction.probabilities is None:
        log(f"Skipped a video that cannot be decoded: {prediction.error}")
        return {"video": prediction.video, "error": prediction.error}
    if print_table:
        table(prediction.video, prediction_rows(predictor, prediction.probabilities))
        if predictor.scoring.has_several_labels and not predictor.predicted(prediction.probabilities):
            log(f"No class is above eval.threshold={predictor.protocol.threshold}.")
    best = predictor.best(prediction.probabilities)
    row = {
        "video": prediction.video,
        "top": [{"class": name, "probability": probability} for name, probability in best],
    }
    if predictor.scoring.has_several_labels:
        row["predicted"] = [name for name, _ in predictor.predicted(prediction.probabilities)]
    return row


def save_features(path: str, rows: dict[str, np.ndarray]) -> None:
    """Writes an .npz file atomically, with the paths `video` (n) and the inputs of the head `features` (n d)."""
    content = io.BytesIO()
    np.savez(content, video=np.array(list(rows)), features=np.array(list(rows.values()), np.float32))
    write_bytes(Path(path), content.getvalue())

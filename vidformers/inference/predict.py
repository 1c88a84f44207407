"""The command `--mode=predict`."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from input_pipeline.files import write_bytes
from vidformers.errors import ConfigError, require
from vidformers.inference.commands import find_videos, load_and_log
from vidformers.inference.predictor import Prediction, Predictor
from vidformers.progress import Bar, log, table

_MAX_TABLES = 10  # with more videos, the predictions are not printed


def predict(config: dict[str, Any], workdir, video: str, out: str | None = None, features: str | None = None) -> None:
    """Predicts the classes of videos.

    Prints a table per video if there are at most 10 videos. After an interrupt, the same command continues after the
    last prediction in `out`. With `features`, it predicts all videos again.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        video: a video, a folder or a list, see `find_videos`.
        out: a file that gets a line of JSON per video.
        features: an .npz file that gets the inputs of the head, see `save_features`.
    Raises:
        ConfigError: there is no checkpoint or no video, or `out` does not hold predictions of these videos.
    """
    videos = find_videos(video)
    done = _count_done(out, videos) if out else 0
    if features:
        done = 0
    predictor = load_and_log(config, workdir)
    log(
        f"Predicting {len(videos) - done} videos with {workdir} at step {predictor.step}, {predictor.protocol.name} "
        "views per video." + (f" {out} already holds the first {done}." if done else "")
    )
    feature_rows: dict[str, np.ndarray] = {}
    count, num_bad, start = 0, 0, time.perf_counter()
    with _open_output(out, append=done > 0) as file, Bar("predict", len(videos), done) as bar:
        for prediction in predictor.predict_many(videos[done:]):
            count += 1
            _report(predictor, prediction, file, print_table=len(videos) <= _MAX_TABLES)
            if prediction.features is None:
                num_bad += 1
            elif features:
                feature_rows[prediction.video] = prediction.features
            bar.advance()
    if features:
        save_features(features, feature_rows)
    seconds = time.perf_counter() - start
    log(
        f"Predicted {count} videos in {seconds:.1f} s, {count / seconds:.1f} videos/s. {num_bad} of them could not be "
        "decoded."
    )


@contextmanager
def _open_output(path: str | None, append: bool) -> Iterator[TextIO | None]:
    """Yields a text file open for writing, or None if `path` is None."""
    if path is None:
        yield None
        return
    with open(path, "a" if append else "w", encoding="utf-8") as file:
        yield file


def _report(predictor: Predictor, prediction: Prediction, file: TextIO | None, print_table: bool) -> None:
    """Writes a prediction as a line of JSON to `file`, and prints it."""
    row: dict[str, Any] = {"video": prediction.video}
    if prediction.probabilities is None:
        row["error"] = prediction.error
        log(f"Skipped a video that cannot be decoded: {prediction.error}")
    else:
        best = predictor.best(prediction.probabilities)
        row["top"] = [{"class": name, "probability": probability} for name, probability in best]
        if print_table:
            table(prediction.video, [(name, f"{probability:.1%}") for name, probability in best])
    if file:
        file.write(json.dumps(row) + "\n")
        file.flush()


def save_features(path: str, rows: dict[str, np.ndarray]) -> None:
    """Writes an .npz file atomically, with the paths `video` (n) and the inputs of the head `features` (n d)."""
    content = io.BytesIO()
    np.savez(content, video=np.array(list(rows)), features=np.array(list(rows.values()), np.float32))
    write_bytes(Path(path), content.getvalue())


def _count_done(out: str, videos: list[str]) -> int:
    """Returns the number of predictions in `out`. Removes an incomplete last line, which a killed process leaves."""
    path = Path(out)
    if not path.exists():
        return 0
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    try:
        done = [json.loads(line)["video"] for line in complete.splitlines()]
    except (ValueError, LookupError, TypeError):
        raise ConfigError(f"--out={out} exists and does not hold predictions. Give another file.") from None
    require(done == videos[: len(done)], f"--out={out} holds predictions of other videos. Give another file.")
    if complete != text:
        write_bytes(path, complete.encode())
    return len(done)

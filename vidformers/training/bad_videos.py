"""Training videos that cannot be decoded."""

import json
from collections import Counter

import jax
import numpy as np

from input_pipeline import DataError
from input_pipeline.balance import max_draws
from input_pipeline.remarks import max_bad_videos
from vidformers.parallel.processes import allgather_strings
from vidformers.progress import log
from vidformers.training.remarks import VideoRemarks
from vidformers.training.setup import Setup


class BadVideos:
    """Counts the training videos that could not be decoded, logs each file once, and stops a run with too many of them.

    The videos of all steps form a sequence, in which every pass over the data has each video once. A step may hold the
    end of one pass and the start of the next, or several whole passes. A video counts once in each pass. With
    data.balance a pass may draw a video several times, and each time counts.

    Attributes:
        clips_by_path: {path of a video: number of its clips that this process left out}. The dict is replaced,
            never changed in place, since a save may still be writing it.
        count_in_pass: the number of videos of the current pass that could not be decoded, over all processes.

    Args:
        setup: the setup of the run.
        clips_by_path, count_in_pass: the restored values.
    """

    def __init__(self, setup: Setup, clips_by_path: dict[str, int], count_in_pass: int):
        self.records, self.setup = setup.pipeline.train_manifest.records, setup
        self.clips_by_path, self.count_in_pass = clips_by_path, count_in_pass
        self._remarks = VideoRemarks(self.records)
        self._limit = max_bad_videos(len(self.records), setup.pipeline.max_bad_fraction)
        if self._limit:  # one bad video is tolerated, however often data.balance draws it
            pipeline = setup.pipeline
            self._limit = max(self._limit, max_draws(self.records, pipeline.num_classes, pipeline.balance))
        self._videos_per_step = setup.train_config.batch_size // setup.pipeline.repeats
        self._has_warned = False
        # {step: the passes of the bad videos of this process}, of steps that `count_global` has not seen.
        self._passes: dict[int, Counter[int]] = {}

    def log_local(self, step: int, batch: dict) -> None:
        """Logs, once for each video, which of this process's batch could not be decoded, and remarks on the others."""
        self._remarks.log_local(batch)
        rows = np.flatnonzero(batch["mask"] == 0)
        clips_by_path = dict(self.clips_by_path)
        for row in rows:
            path = self.records[int(batch["id"][row])].path
            if path not in clips_by_path:
                log(f"Skipped {path}, which cannot be decoded: {batch['error'][row].decode('utf-8', 'replace')}")
            clips_by_path[path] = clips_by_path.get(path, 0) + 1
        self.clips_by_path = clips_by_path
        # The rows of a process are consecutive, and the `repeats` rows of a video are adjacent.
        first_row = jax.process_index() * len(batch["mask"])
        videos = {(first_row + int(row)) // self.setup.pipeline.repeats for row in rows}
        start = (step - 1) * self._videos_per_step
        self._passes[step] = Counter((start + video) // len(self.records) for video in videos)

    def count_global(self, step: int, metrics: dict) -> None:
        """Counts the videos that any process could not decode at `step`.

        Args:
            step: the number of the step, from 1.
            metrics: the metrics of the step, which are the same in all processes.
        Raises:
            DataError: a pass has more bad videos than data.max_bad_fraction allows.
        """
        start, stop = (step - 1) * self._videos_per_step, step * self._videos_per_step
        passes, local = range(start // len(self.records), (stop - 1) // len(self.records) + 1), self._passes.pop(step)
        bad = (self.setup.train_config.batch_size - round(metrics["count"])) // self.setup.pipeline.repeats
        counts = Counter({passes[0]: bad}) if bad == 0 or len(passes) == 1 else _sum_over_processes(local)
        for number in passes:
            if number * len(self.records) >= start:
                self.count_in_pass = 0  # the pass starts in this step
            self._add(counts[number])

    def _add(self, count: int) -> None:
        """Adds to the videos of the current pass that could not be decoded."""
        self.count_in_pass += count
        fraction = self.setup.pipeline.max_bad_fraction
        example = f" An example is {list(self.clips_by_path)[-1]}." if self.clips_by_path else ""
        sentence = (
            f"{self.count_in_pass} of {len(self.records)} videos could not be decoded in this pass over the data, more "
            f"than data.max_bad_fraction={fraction} allows.{example}"
        )
        if self.count_in_pass > self._limit:
            raise DataError(
                f"{sentence} A larger data.max_bad_fraction continues this run without them. For another run, "
                "python -m input_pipeline.check lists them for data.exclude."
            )
        if self.count_in_pass > fraction * len(self.records) and not self._has_warned and jax.process_index() == 0:
            self._has_warned = True
            log(f"{sentence} The run goes on, since one bad video is tolerated in so small a data set.")


def _sum_over_processes(counts: Counter[int]) -> Counter[int]:
    """Returns the sum of the counts of all processes."""
    texts = allgather_strings(json.dumps(list(counts.items())))
    return sum((Counter(dict(json.loads(text))) for text in texts), Counter())

"""Training videos that cannot be decoded."""

import numpy as np

from input_pipeline import DataError
from vidformers.progress import log
from vidformers.training.setup import Setup


class BadVideos:
    """Counts the training clips that could not be decoded, logs each file once, and stops a run with too many of them.

    Attributes:
        clips_by_path: {path of a video: number of its clips that this process left out}. The dict is replaced,
            never changed in place, since a save may still be writing it.
        count_in_epoch: the number of videos of the current epoch that could not be decoded, over all processes.

    Args:
        setup: the setup of the run.
        clips_by_path, count_in_epoch: the restored values.
    """

    def __init__(self, setup: Setup, clips_by_path: dict[str, int], count_in_epoch: int):
        self.records, self.setup = setup.pipeline.train_manifest.records, setup
        self.clips_by_path, self.count_in_epoch = clips_by_path, count_in_epoch

    def log_local(self, batch: dict) -> None:
        """Logs each video of this process's batch that could not be decoded, unless it has been logged before."""
        clips_by_path = dict(self.clips_by_path)
        for row in np.flatnonzero(batch["mask"] == 0):
            path = self.records[int(batch["id"][row])].path
            if path not in clips_by_path:
                log(f"Skipped {path}, which cannot be decoded: {batch['error'][row].decode('utf-8', 'replace')}")
            clips_by_path[path] = clips_by_path.get(path, 0) + 1
        self.clips_by_path = clips_by_path

    def count_global(self, step: int, metrics: dict) -> None:
        """Adds the videos that any process could not decode at `step` to the count of the current epoch.

        Args:
            step: the number of the step, from 1.
            metrics: the metrics of the step, which are the same in all processes.
        Raises:
            DataError: the epoch has more bad videos than data.max_bad_fraction allows.
        """
        batch_size, repeats, videos = self.setup.train_config.batch_size, self.setup.pipeline.repeats, len(self.records)
        videos_per_step = batch_size // repeats
        if step > 1 and (step - 1) * videos_per_step // videos != (step - 2) * videos_per_step // videos:
            self.count_in_epoch = 0  # a new epoch has started
        self.count_in_epoch += (batch_size - round(metrics["count"])) // repeats
        max_fraction = self.setup.pipeline.max_bad_fraction
        if self.count_in_epoch > max_fraction * videos:
            example = f" An example is {list(self.clips_by_path)[-1]}." if self.clips_by_path else ""
            raise DataError(
                f"{self.count_in_epoch} of {videos} videos could not be decoded in this epoch, more than "
                f"data.max_bad_fraction={max_fraction} allows.{example}"
            )

"""Training videos that cannot be decoded."""

import numpy as np

from input_pipeline import DataError
from vidformers.progress import log
from vidformers.training.setup import Setup


class BadVideos:
    """Counts the training rows that could not be decoded, logs each file once, and ends a run with too many of them.

    Args:
        setup: of the run.
        progress: the counts that a checkpoint holds: `bad` {path: rows of this process}, `bad_in_pass` the videos of
            the present pass over the data, of all processes. `progress` is replaced, never changed in place, since a
            save may still be writing it.
    """

    def __init__(self, setup: Setup, progress: dict):
        self.records, self.setup, self.progress = setup.pipeline.train_manifest.records, setup, progress

    def note_bad_rows(self, batch: dict) -> None:
        """Logs the files behind the bad rows of this process's batch, each at its first occurrence."""
        rows_by_path = dict(self.progress["bad"])
        for row in np.flatnonzero(batch["mask"] == 0):
            path = self.records[int(batch["id"][row])].path
            if path not in rows_by_path:
                log(f"Skipped {path}, which cannot be decoded: {batch['error'][row].decode('utf-8', 'replace')}")
            rows_by_path[path] = rows_by_path.get(path, 0) + 1
        self.progress = {**self.progress, "bad": rows_by_path}

    def count_bad_rows(self, step: int, metrics: dict) -> None:
        """Adds the bad rows of all processes at `step`, counted from 1, to those of the present pass over the data.

        Raises:
            DataError: the pass has more bad videos than data.max_bad_fraction allows.
        """
        batch_size, repeats = self.setup.train_config.batch_size, self.setup.pipeline.repeats
        videos_per_step, bad_in_pass = batch_size // repeats, self.progress["bad_in_pass"]
        if step > 1 and (step - 1) * videos_per_step // len(self.records) != (step - 2) * videos_per_step // len(
            self.records
        ):
            bad_in_pass = 0  # a new pass has begun
        bad_in_pass += (batch_size - round(metrics["count"])) // repeats
        self.progress = {**self.progress, "bad_in_pass": bad_in_pass}
        max_fraction = self.setup.pipeline.max_bad_fraction
        if bad_in_pass > max_fraction * len(self.records):
            example = f" An example is {list(self.progress['bad'])[-1]}." if self.progress["bad"] else ""
            raise DataError(
                f"{bad_in_pass} of {len(self.records)} videos could not be decoded in this pass over the data, more "
                f"than data.max_bad_fraction={max_fraction} allows.{example}"
            )

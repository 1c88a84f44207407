"""Training videos that will not decode."""

import numpy as np

from input_pipeline import DataError
from vidformers.progress import log
from vidformers.training.setup import Setup


class BadVideos:
    """Counts the rows that would not decode, names each file once, and ends a run that meets too many."""

    def __init__(self, setup: Setup, progress: dict):
        self.records, self.setup, self.progress = setup.pipeline.train_manifest.records, setup, progress

    def meet(self, batch: dict) -> None:
        """Names those of a batch of this process."""
        known = dict(self.progress["bad"])
        for row in np.flatnonzero(batch["mask"] == 0):
            path = self.records[int(batch["id"][row])].path
            if path not in known:
                log(f"Left out, it will not decode: {path}: {batch['error'][row].decode('utf-8', 'replace')}")
            known[path] = known.get(path, 0) + 1
        self.progress = {**self.progress, "bad": known}

    def count(self, step: int, figures: dict) -> None:
        """Counts those of `step`, counted from 1, of all processes."""
        loop, repeats = self.setup.loop, self.setup.pipeline.repeats
        size, before = loop.batch_size // repeats, self.progress["bad_in_pass"]
        if step > 1 and (step - 1) * size // len(self.records) != (step - 2) * size // len(self.records):
            before = 0  # another pass
        count = before + (loop.batch_size - round(figures["count"])) // repeats
        self.progress = {**self.progress, "bad_in_pass": count}
        most = self.setup.pipeline.max_bad_fraction
        if count > most * len(self.records):
            one = f"; one of them: {list(self.progress['bad'])[-1]}" if self.progress["bad"] else ""
            raise DataError(
                f"{count} of {len(self.records)} videos of this pass would not decode, more than "
                f"data.max_bad_fraction={most} allows{one}."
            )

"""Remarks on how videos are read."""

import re

import numpy as np

from input_pipeline.annotations import Record
from vidformers.progress import log

_MAX_VIDEOS = 5  # that are named for one kind of remark


class VideoRemarks:
    """Logs how videos are read where that is not obvious, such as recordings that were paused, and HDR.

    Each video is logged once. For each kind of remark, the first five videos are logged, so that a data set of such
    videos does not fill the log. `python -m input_pipeline.check` lists all of them.

    Args:
        records: the videos.
    """

    def __init__(self, records: tuple[Record, ...]):
        self._records = records
        self._ids_by_kind: dict[str, set[int]] = {}

    def log_local(self, batch: dict) -> dict:
        """Logs the remarks on the videos of this process's batch, which is returned."""
        for row in np.flatnonzero(batch["remark"] != b""):
            id, remark = int(batch["id"][row]), batch["remark"][row].decode()
            ids = self._ids_by_kind.setdefault(re.sub(r"\d+", "", remark), set())
            if id in ids or len(ids) > _MAX_VIDEOS:
                continue
            ids.add(id)
            if len(ids) <= _MAX_VIDEOS:
                log(f"{self._records[id].path}: {remark}")
            else:
                log("More videos have this remark. python -m input_pipeline.check lists them.")
        return batch

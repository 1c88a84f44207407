"""The folder `checkpoints` of a run: one subfolder per checkpoint, named after its step, with checksums of its files.

Beside the checkpoints may lie `STEP.saving` and `STEP.saving.orbax-checkpoint-tmp`, which are being written,
`STEP.removing`, which is being deleted, and `STEP.damaged`, a checkpoint that was found damaged. A checkpoint gets and
loses its name by a rename, so a folder that is named after a step is complete unless it was damaged later. Its files
are flushed to the disk before, so that this also holds after a power cut.
"""

import json
import math
import re
import shutil
from contextlib import suppress
from pathlib import Path

from input_pipeline import checksums
from input_pipeline.files import atomic_folder, flush, flush_folder, unused_path, write_text
from input_pipeline.json_files import JsonError, check_kind, read_json
from input_pipeline.text import is_unicode
from vidformers.errors import require

# A key beside the host state in the metadata of a checkpoint. Checkpoints of earlier versions lack it.
HAS_CHECKSUMS = "has_checksums"
_METRICS = "metrics"  # a folder in a checkpoint, with a file of the same name: as Orbax stores the metrics of a step
_UNFINISHED = re.compile(r".*\.saving|.*\.removing(\.[0-9]+)?|.*\.orbax-checkpoint-tmp.*")


def check_folder(path: Path) -> None:
    """Raises ConfigError if checkpoints cannot be saved or read below this folder because of its name."""
    absolute = str(path.absolute())
    # Orbax takes the path for a pattern when it joins the files of a checkpoint, and TensorStore takes UTF-8 alone.
    require(
        is_unicode(absolute) and not any(character in "*?[\\" for character in absolute),
        f"{path}: checkpoints cannot be saved or read in a folder whose path holds *, ?, [, a backslash or bytes that "
        "are not UTF-8. Give another folder, or rename this one.",
    )


class CheckpointFolder:
    """The checkpoints in the folder `path`. In a run of several processes, only process 0 changes the folder.

    Raises:
        ConfigError: checkpoints cannot be saved or read there.
    """

    def __init__(self, path: Path):
        check_folder(path)
        self.path = path

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints in ascending order, damaged ones included."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def step_path(self, step: int) -> Path:
        return self.path / str(step)

    def saving_path(self, step: int) -> Path:
        """Returns the folder that a checkpoint is written to before `publish`."""
        return self.path / f"{step}.saving"

    def publish(self, step: int) -> None:
        """Writes the checksums of a checkpoint, flushes its files to the disk, and gives it its name."""
        checksums.write_checksums(self.saving_path(step))
        flush_folder(self.saving_path(step))
        self.saving_path(step).rename(self.step_path(step))
        flush(self.path)

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds metrics to a checkpoint, or replaces those that it has.

        A kill leaves the old metrics, the new ones or none, and never a part of them: evaluations without metrics are
        repeated, but a part would be damage.
        """
        target = self.step_path(step) / _METRICS
        with atomic_folder(target) as temporary:
            write_text(temporary / _METRICS, json.dumps(metrics))
            checksums.write_checksums(temporary)
            if target.exists():
                old = unused_path(target.with_name(f"{_METRICS}.removing"))
                target.rename(old)
                _remove(old)

    def read_metrics(self, step: int) -> tuple[dict[str, float], str | None]:
        """Returns the metrics of a checkpoint, {} if it has none, and a clause that says how they are damaged.

        Raises:
            OSError: the metrics exist and cannot be read, which is no damage.
        """
        folder = self.step_path(step) / _METRICS
        if not folder.exists():
            return {}, None
        try:
            if self._has_checksums(step) or (folder / checksums.NAME).exists():
                damage = checksums.find_damage(folder)
                if damage is not None:
                    return {}, f"{_METRICS}/{damage}"
            metrics = read_json(folder / _METRICS)
            check_kind(metrics, dict.fromkeys(metrics, float))
            return metrics, None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, JsonError):
            return {}, f"{_METRICS}/{_METRICS} is damaged"

    def find_damage(self, step: int, part: int = 0, parts: int = 1, *, large: bool | None = None) -> str | None:
        """Returns a clause that says what is damaged in a checkpoint, or None. For the arguments see `checksums`.

        In a checkpoint of an earlier version, which has no checksums, only the metrics are looked at.
        """
        if not self.step_path(step).is_dir():
            return "it is not a folder"
        damage = None
        if self._has_checksums(step):
            damage = checksums.find_damage(self.step_path(step), part, parts, large=large)
        return damage or self.read_metrics(step)[1]

    def is_verified(self, step: int) -> bool:
        """Returns whether a checkpoint carries checksums, as those of earlier versions do not."""
        return (self.step_path(step) / checksums.NAME).exists()

    def _has_checksums(self, step: int) -> bool:
        """Returns whether a checkpoint had checksums when it was saved. They may be lost."""
        if self.is_verified(step):
            return True
        try:
            metadata = read_json(self.step_path(step) / "_CHECKPOINT_METADATA", {"custom_metadata": (dict, type(None))})
            return HAS_CHECKSUMS in (metadata["custom_metadata"] or {})
        except (OSError, JsonError):
            return True  # nothing can be restored without this file

    def set_aside(self, step: int) -> Path:
        """Renames a damaged checkpoint, and returns its new path."""
        target = unused_path(self.path / f"{step}.damaged")
        self.step_path(step).rename(target)
        return target

    def has_damaged(self) -> bool:
        """Returns whether a damaged checkpoint was set aside."""
        return self.path.is_dir() and any(".damaged" in entry.name for entry in self.path.iterdir())

    def remove_all_but(self, newest: int, metric: str) -> None:
        """Removes all checkpoints but the newest, the one with the highest metric, and those with damaged metrics."""
        steps, scores = self.steps(), {}
        kept = set(steps[-newest:])
        for step in steps:
            metrics, damage = self.read_metrics(step)
            if damage is not None:
                kept.add(step)
            elif metrics:
                scores[step] = score(metrics, metric)
        kept.update(sorted(scores, key=lambda step: (scores[step], step))[-1:])
        for step in set(steps) - kept:
            removing = unused_path(self.path / f"{step}.removing")
            self.step_path(step).rename(removing)
            _remove(removing)

    def remove_unfinished(self) -> None:
        """Removes what killed processes left: checkpoints that were being written or deleted."""
        for entry in self.path.iterdir():
            if _UNFINISHED.fullmatch(entry.name):
                _remove(entry)


def _remove(path: Path) -> None:
    """Removes a folder, a file, or a link but not what it leads to. What cannot be removed is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def score(metrics: dict[str, float], metric: str) -> float:
    """Returns the value by which the best checkpoint is chosen."""
    value = metrics.get(metric, -1.0)  # absent if the run was continued with another `checkpoint.best`
    return value if math.isfinite(value) else -1.0

"""The plan of a prepared data set: one job per shard, and the lists that are written when all shards are done.

A job writes a shard and its metadata, one JSON object per line. Both are written under temporary names, verified, and
renamed, the metadata last. A job whose metadata file exists is done, and any other is run again from its start. The
content of a shard depends only on the lists and the options, so any process may run a job, even more than once.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.files import atomic_file, is_temporary, remove_temporaries, require_lines, write_text
from input_pipeline.json_files import JsonError, open_regular, parse_json, read_json
from input_pipeline.outputs import is_lock, locked
from input_pipeline.shards import FIELDS, FORMAT, LABELS, SUMS, read_shard, write_shard
from input_pipeline.transcode import Encoding, Task

OPTIONS_FILE = "prepare.json"
_DESCRIPTIONS = {
    "train": "the list data.train",
    "val": "the list data.val",
    "test": "the list data.test",
    "classes": "the classes",
    "format": "the format",
}


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to write: number `index` of the `count` shards of `split`, with one task for each of its videos."""

    split: str
    index: int
    count: int
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"

    @property
    def shard(self) -> str:
        """File name of the shard."""
        return self.name + ".array_record"

    def metadata_path(self, folder) -> str:
        """Returns the path of the metadata file in `folder`. It exists if and only if the job is done."""
        return os.path.join(folder, self.name + ".jsonl")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All shards of a data set.

    Attributes:
        splits: the parts of the data set, 'train', 'val' and perhaps 'test'.
        jobs: the jobs of all splits, in order.
        classes: class names by label.
        left_out: (split, name, reason) of the listed videos that no job contains.
        options: everything that determines the content of the shards.
    """

    splits: tuple[str, ...]
    jobs: tuple[ShardJob, ...]
    classes: tuple[str, ...]
    left_out: tuple[tuple[str, str, str], ...]
    options: dict


def make_plan(data: dict, encoding: dict, clips_per_shard: int) -> Plan:
    """Returns the plan for the `data` section of a config.

    Args:
        data: fields of `Pipeline`.
        encoding: fields of `transcode.Encoding`.
        clips_per_shard: videos in a shard, at least 1.

    Raises:
        DataError: a field or a list is invalid, or `clips_per_shard` is out of range.
    """
    # These import grain, which the transcoding processes do not need.
    from input_pipeline.pipeline import Pipeline
    from input_pipeline.remarks import unmatched_lines

    pipeline, encoding = Pipeline(**data), Encoding(**encoding)
    if clips_per_shard < 1:
        raise DataError(f"--clips_per_shard must be at least 1, but is {clips_per_shard}.")
    unmatched_lines(pipeline)  # refuses a data.exclude that names no video
    classes = pipeline.class_names
    require_lines(classes)  # classes.txt holds one name per line
    options = {
        "format": FORMAT,
        **dataclasses.asdict(encoding),
        "clips_per_shard": clips_per_shard,
        "frame_rate": pipeline.frame_rate,
        "classes": _sha256("\n".join(classes))[:16],
    }
    jobs, left_out = [], []
    for split in pipeline.parts.names:
        manifest = pipeline.manifest(split)
        options[split] = manifest.digest
        settings = encoding, pipeline.frame_rate, pipeline.limit_seconds
        tasks = [Task(record, *settings) for record in manifest.records]
        starts = range(0, len(tasks), clips_per_shard)
        jobs += [
            ShardJob(split, index, len(starts), tuple(tasks[start : start + clips_per_shard]))
            for index, start in enumerate(starts)
        ]
        left_out += [(split, name, "The video does not exist.") for name in manifest.missing]
        left_out += [(split, name, "data.exclude names it.") for name in manifest.excluded]
    return Plan(pipeline.parts.names, tuple(jobs), classes, tuple(left_out), options)


def claim_folder(folder, options: dict) -> None:
    """Records the options in an empty folder, or verifies that the folder was begun with the same options.

    Raises:
        DataError: the folder was begun with other options, or contains other files.
        OSError: the folder cannot be read or written.
    """
    path = os.path.join(folder, OPTIONS_FILE)
    with locked(Path(folder, ".options.lock")):  # parts of one job may start at once
        names = {name for name in os.listdir(folder) if not is_temporary(name) and not is_lock(name)}
        if not names:
            write_text(path, json.dumps(options) + "\n")
            return
    if OPTIONS_FILE not in names:
        raise DataError(f"--out={folder} contains other files than prepared shards. Choose another folder.")
    try:
        begun = read_json(path)
    except JsonError:
        raise DataError(f"{path} was not written by python -m input_pipeline.prepare.") from None
    for option, value in options.items():
        if begun.get(option) != value:
            name = _DESCRIPTIONS.get(option, f"--{option}")
            raise DataError(
                f"--out={folder} was begun with {name} {begun.get(option)}, which is {value} now. "
                "Choose another folder, or the options that this one was begun with."
            )


def run_job(folder, job: ShardJob, results: Iterable[tuple[dict, bytes | None]]) -> list[dict]:
    """Writes a shard, reads it back to verify it, and publishes it with its metadata.

    Args:
        folder: destination.
        job: the shard to write.
        results: results of `transcode.run` for the tasks of the job, in order.

    Returns:
        The metadata: one dictionary about the shard, then one for each video.

    Raises:
        OSError: the shard cannot be written, or reading it back gives other bytes.
    """
    path, rows = os.path.join(folder, job.shard), []
    with atomic_file(path) as temporary:
        write_shard(str(temporary), _clips(results, rows))
        clips = [row for row in rows if "reason" not in row]
        try:
            digests = [hashlib.sha256(data).hexdigest() for data in read_shard(str(temporary))]
        except DecodeError as error:
            raise OSError(None, f"reading it back failed: {error}", path) from error
        if digests != [row["sha256"] for row in clips] or len(rows) != len(job.tasks):
            raise OSError(None, "reading it back gave other bytes than were written", path)
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.path.getsize(temporary)
    for position, row in enumerate(clips):
        row.update(shard=job.shard, position=position)
    metadata = [{"shard": job.shard, "bytes": size, "sha256": digest}, *rows]
    write_text(job.metadata_path(folder), "".join(json.dumps(row) + "\n" for row in metadata))
    return metadata


def _clips(results, rows) -> Iterator[bytes]:
    """Yields the clips of `results` and appends the metadata of all videos to `rows`."""
    for row, data in results:
        rows.append(row)
        if data is not None:
            yield data


def unfinished_jobs(folder, jobs: Iterable[ShardJob]) -> list[ShardJob]:
    """Returns the jobs whose metadata file does not exist yet."""
    names = set(os.listdir(folder))
    return [job for job in jobs if os.path.basename(job.metadata_path(folder)) not in names]


def merge(folder, plan: Plan) -> dict:
    """Writes the lists, the class names, the videos left out, a summary, and checksums of these and of the shards.

    Returns:
        The summary: the options, and for each split the number of `clips`, of `excluded` videos (missing videos
        included) and of `frames`, and the bytes before (`source_bytes`) and after (`bytes`).
        `remarks` has [path, text] of the videos with remarks, see `videos.remarks`.

    Raises:
        DataError: shards are missing, or a shard has another size than when it was written.
        OSError: a file cannot be read or written.
    """
    missing = [job.name for job in unfinished_jobs(folder, plan.jobs)]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"--out={folder} lacks {len(missing)} of {len(plan.jobs)} shards, {names}. "
            "Run prepare without --merge=true first."
        )
    checksums, summary, excluded = {}, {"options": plan.options}, []
    for split in plan.splits:
        rows, shard_bytes = [], 0
        for job in (job for job in plan.jobs if job.split == split):
            shard, *job_rows = _read_metadata(folder, job)
            checksums[job.shard], shard_bytes = shard["sha256"], shard_bytes + shard["bytes"]
            rows += job_rows
        clips = [row for row in rows if "reason" not in row]
        split_excluded = [entry for entry in plan.left_out if entry[0] == split]
        split_excluded += [(split, row["path"], row["reason"]) for row in rows if "reason" in row]
        checksums[f"{split}.json"] = _write(folder, f"{split}.json", _list_text(clips, split, plan.options[split]))
        excluded += split_excluded
        summary[split] = {
            "clips": len(clips),
            "excluded": len(split_excluded),
            "frames": sum(row["frames"] for row in clips),
            "source_bytes": sum(row["source_bytes"] for row in clips),
            "bytes": shard_bytes,
            "remarks": [[row["path"], row["remarks"]] for row in clips if "remarks" in row],
        }
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("split", "path", "reason"), *excluded])
    for name, text in (
        ("classes.txt", "".join(f"{name}\n" for name in plan.classes)),
        ("excluded.csv", table.getvalue()),
        ("summary.json", json.dumps(summary, indent=1) + "\n"),
    ):
        checksums[name] = _write(folder, name, text)
    _write(folder, SUMS, "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)))
    remove_temporaries(folder)  # all jobs are done, so no process writes here any more
    return summary


def _read_metadata(folder, job) -> list[dict]:
    with open_regular(job.metadata_path(folder)) as file:
        try:
            metadata = [parse_json(line) for line in file]
            is_whole = metadata[0].keys() >= {"bytes", "sha256"}
        except (JsonError, LookupError):
            is_whole = False
    if not is_whole:
        raise DataError(f"{job.metadata_path(folder)} is damaged. Remove this file and run prepare again.")
    size, expected = os.path.getsize(os.path.join(folder, job.shard)), metadata[0]["bytes"]
    if size != expected:
        raise DataError(
            f"{job.shard} in {folder} has {size} bytes, but was written with {expected}. "
            f"Remove {job.name}.jsonl and run prepare again."
        )
    return metadata


def _list_text(clips, split, source_digest) -> str:
    """Returns the text of train.json or val.json: one JSON object with one line for every clip."""
    head = json.dumps({"format": FORMAT, "split": split, "source_digest": source_digest})
    lines = ",\n".join(json.dumps({field: row[field] for field in (*FIELDS, LABELS) if field in row}) for row in clips)
    return f'{head[:-1]}, "clips": [\n{lines}\n]}}\n'


def _write(folder, name, text) -> str:
    """Writes a text file atomically. Returns its SHA-256 in hexadecimal."""
    write_text(os.path.join(folder, name), text)
    return _sha256(text)


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

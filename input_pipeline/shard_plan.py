"""The pieces that preparing a data set is done in, and what is made of them at the end.

A piece is a shard and beside it the notes on its videos, one JSON object a line. Both are written under other
names, checked, and renamed, the notes last: a piece with notes is done, any other is done anew. What a piece
holds depends on the lists and the options alone, so that it does not matter which process makes it, or how often.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.shards import FIELDS, FORMAT, read_shard, write_shard
from input_pipeline.transcode import Encoding, Task

SPLITS = ("train", "val")
OPTIONS = "prepare.json"


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Piece number `index` of the `count` pieces of a split, with the videos in it."""

    split: str
    index: int
    count: int
    tasks: tuple[Task, ...]

    @property
    def name(self):
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"

    @property
    def shard(self):
        return self.name + ".array_record"

    def notes(self, folder):
        """Path of the notes, which are there when the piece is done."""
        return os.path.join(folder, self.name + ".jsonl")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make.

    Attributes:
      pieces: of both splits, in order.
      classes: names by label.
      absent: (split, name, why) of the videos that the lists name and that are left out.
      options: all that the pieces follow from.
    """

    pieces: tuple[ShardJob, ...]
    classes: tuple[str, ...]
    absent: tuple[tuple[str, str, str], ...]
    options: dict


def plan(pipeline, encoding: Encoding, clips_per_shard: int) -> Plan:
    """The pieces of the two lists of an `input_pipeline.Pipeline`.

    Raises:
      DataError: as from the manifests of `pipeline`, or `clips_per_shard` is out of range.
    """
    if clips_per_shard < 1:
        raise DataError(f"--clips_per_shard must be at least 1, but is {clips_per_shard}.")
    classes = pipeline.class_names
    options = {
        "format": FORMAT,
        **dataclasses.asdict(encoding),
        "clips_per_shard": clips_per_shard,
        "frame_rate": pipeline.frame_rate,
        "classes": _digest("\n".join(classes))[:16],
    }
    pieces, absent = [], []
    for split, manifest in zip(SPLITS, (pipeline.train_manifest, pipeline.val_manifest), strict=True):
        options[split] = manifest.digest
        tasks = [Task(record, encoding, pipeline.frame_rate) for record in manifest.records]
        starts = range(0, len(tasks), clips_per_shard)
        pieces += [
            ShardJob(split, index, len(starts), tuple(tasks[start : start + clips_per_shard]))
            for index, start in enumerate(starts)
        ]
        absent += [(split, name, "The video is not there.") for name in manifest.missing]
        absent += [(split, name, "data.exclude names it.") for name in manifest.excluded]
    return Plan(tuple(pieces), classes, tuple(absent), options)


def claim(folder, options):
    """Marks a folder as made with these options.

    Raises:
      DataError: it was begun with other options, or holds something else.
      OSError: it cannot be read or written.
    """
    os.makedirs(folder, exist_ok=True)
    names = {name for name in os.listdir(folder) if not name.endswith(".tmp")}
    path = os.path.join(folder, OPTIONS)
    if not names:
        write_text(path, json.dumps(options) + "\n")
    elif OPTIONS not in names:
        raise DataError(f"--out={folder} holds something else than prepared clips; choose another folder.")
    else:
        with open(path, encoding="utf-8") as file:
            try:
                begun = dict(json.load(file))
            except (ValueError, TypeError):
                raise DataError(f"{path} is not what python -m input_pipeline.prepare has written.") from None
        for option, value in options.items():
            if begun.get(option) != value:
                meant = {
                    "train": "the list data.train",
                    "val": "the list data.val",
                    "classes": "the classes",
                    "format": "the format",
                }.get(option, f"--{option}")
                raise DataError(
                    f"--out={folder} was begun with {meant} {begun.get(option)}, which is {value} now: "
                    "choose another folder, or what it was begun with."
                )


def write(folder, piece: ShardJob, results: Iterable[tuple[dict, bytes | None]]) -> list[dict]:
    """Writes a piece, reads it back, and publishes it.

    Args:
      folder: where to.
      results: of `transcode.run` for the videos of the piece, in order.

    Returns:
      The notes: the first on the shard itself, then one for each video.

    Raises:
      OSError: the piece cannot be written, or is not what was written when read back.
    """
    path = os.path.join(folder, piece.shard)
    temporary, notes = _temporary(path), []
    try:
        write_shard(temporary, _clips(results, notes))
        clips = [row for row in notes if "reason" not in row]
        try:
            found = [hashlib.sha256(data).hexdigest() for data in read_shard(temporary)]
        except DecodeError as error:
            raise OSError(None, f"reading back what was written gave: {error}", path) from error
        if found != [row["sha256"] for row in clips] or len(notes) != len(piece.tasks):
            raise OSError(None, "reading back gave other bytes than were written", path)
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        for position, row in enumerate(clips):
            row.update(shard=piece.shard, position=position)
        notes.insert(0, {"shard": piece.shard, "bytes": os.path.getsize(temporary), "sha256": digest})
        _publish(temporary, path)
    finally:
        _discard(temporary)
    write_text(piece.notes(folder), "".join(json.dumps(row) + "\n" for row in notes))
    return notes


def _clips(results, notes):
    for row, data in results:
        notes.append(row)
        if data is not None:
            yield data


def unfinished(folder, pieces: Iterable[ShardJob]) -> list[ShardJob]:
    """The pieces that are not done yet."""
    there = set(os.listdir(folder))
    return [piece for piece in pieces if os.path.basename(piece.notes(folder)) not in there]


def merge(folder, plan: Plan) -> dict:
    """Writes the lists, the classes, what was left out, a summary, and the checksums of it all.

    Returns:
      The summary: the options, and for each split the number of `clips`, of `excluded` videos (those not there among
      them) and of `frames`, and the bytes before, `source_bytes`, and after, `bytes`.

    Raises:
      DataError: pieces are missing, or a shard is not of the size it was written with.
      OSError: a file cannot be read or written.
    """
    left = [piece.name for piece in unfinished(folder, plan.jobs)]
    if left:
        names = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise DataError(
            f"--out={folder} lacks {len(left)} of {len(plan.pieces)} pieces, {names}: run prepare for them first."
        )
    sums, summary, excluded = {}, {"options": plan.options}, []
    for split in SPLITS:
        clips, shard_bytes = [], 0
        out = [left for left in plan.absent if left[0] == split]
        for piece in (piece for piece in plan.jobs if piece.split == split):
            with open(piece.notes(folder), encoding="utf-8") as file:
                shard, *rows = map(json.loads, file)
            size = os.path.getsize(os.path.join(folder, piece.shard))
            if size != shard["bytes"]:
                raise DataError(
                    f"{piece.shard} in {folder} has {size} bytes, but was written with {shard['bytes']}: "
                    f"remove {piece.name}.jsonl and run prepare again."
                )
            sums[piece.shard], shard_bytes = shard["sha256"], shard_bytes + size
            clips += [row for row in rows if "reason" not in row]
            out += [(split, row["path"], row["reason"]) for row in rows if "reason" in row]
        sums[f"{split}.json"] = _write_list(os.path.join(folder, f"{split}.json"), clips, split, plan.options[split])
        excluded += out
        summary[split] = {
            "clips": len(clips),
            "excluded": len(out),
            "frames": sum(row["frames"] for row in clips),
            "source_bytes": sum(row["source_bytes"] for row in clips),
            "bytes": shard_bytes,
        }
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("split", "path", "reason"), *excluded])
    for name, text in (
        ("classes.txt", "".join(f"{name}\n" for name in plan.classes)),
        ("excluded.csv", table.getvalue()),
        ("summary.json", json.dumps(summary, indent=1) + "\n"),
    ):
        sums[name] = write_text(os.path.join(folder, name), text)
    write_text(os.path.join(folder, "SHA256SUMS"), "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for name in os.listdir(folder):  # of processes that were killed: with all pieces done, none is at work
        if name.startswith(".") and name.endswith(".tmp"):
            _discard(os.path.join(folder, name))
    return summary


def _write_list(path, clips, split, digest):
    head = json.dumps({"format": FORMAT, "split": split, "source_digest": digest})
    lines = ",\n".join(json.dumps({field: row[field] for field in FIELDS}) for row in clips)
    return write_text(path, f'{head[:-1]}, "clips": [\n{lines}\n]}}\n')


def write_text(path, text) -> str:
    """Writes a file whole or not at all; returns its SHA-256 in hexadecimal."""
    temporary = _temporary(path)
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
        _publish(temporary, path)
    finally:
        _discard(temporary)
    return _digest(text)


def _digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _temporary(path):
    """A name in the same folder that no other process takes."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")


def _publish(temporary, path):
    """Renames a file once its content is on the disk."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(os.path.dirname(path) or ".")


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path):
    try:
        os.remove(path)
    except FileNotFoundError:
        pass

"""Prepared shards: ArrayRecord files with one short video per record, and the JSON lists that describe the records.

A list, train.json or val.json, is one JSON object with one line for every clip. The shards are in the same folder.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.json_files import JsonError, read_json

FORMAT = 1  # increase it if older readers would misread the lists or the records
FIELDS = ("name", "shard", "position", "label", "frames", "fps", "width", "height", "bytes", "sha256")
SUMS = "SHA256SUMS"  # the digests of all files that `prepare` wrote, as `sha256sum --check` reads them
_LARGEST_LIST = 2**31  # bytes, for ten million clips
LABELS = "labels"  # the field of a clip that may have several labels
_TEXTS = ("train.json", "val.json", "classes.txt")

# Videos are already compressed. To return one record, ArrayRecord reads its whole group, so a group is one record.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Access is random: reading ahead would fetch neighbours that the shuffled order does not need.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def write_shard(path: str, videos: Iterable[bytes]) -> None:
    """Writes `videos`, in order, to the file `path`.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    try:
        writer = ArrayRecordWriter(path, _WRITER_OPTIONS)
        try:
            for video in videos:
                writer.write(video)
        finally:
            writer.close()
    except RuntimeError as error:
        reason = str(error).partition(";")[0].rpartition(": ")[2]
        raise OSError(None, reason, path) from error


def read_shard(path: str) -> Iterator[bytes]:
    """Yields all records of the shard `path`, in order.

    Raises:
        DecodeError: the shard is missing or damaged.
    """
    reader = _open(path)
    for position in range(reader.num_records()):
        yield _read(reader, path, position)


def read_video(path: str, position: int, sha256: bytes = b"") -> bytes:
    """Returns the record at `position`, counted from 0, of the shard `path`. The shard stays open for later calls.

    Raises:
        DecodeError: the shard is missing or damaged, or has no such record, or the record has another SHA-256 than
            `sha256`, unless this is empty.
    """
    data = _read(_cached_reader(path), path, position)
    if sha256 and hashlib.sha256(data).digest() != sha256:
        raise DecodeError(f"{path} row {position}: the clip differs from the SHA-256 in its list.")
    return data


def _read(reader, path, position):
    try:
        if not 0 <= position < reader.num_records():
            raise DecodeError(f"{path}: there is no row {position}, only {reader.num_records()} rows.")
        return reader.read([position])[0]
    except RuntimeError as error:
        raise DecodeError(f"{path} row {position}: {error}") from error


def _open(path):
    try:
        with open(path, "rb"):  # ArrayRecordReader reads a missing file as an empty one
            reader = ArrayRecordReader(path, _READER_OPTIONS)
    except (OSError, RuntimeError) as error:
        raise DecodeError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not reader.ok():
        raise DecodeError(f"{path}: this is not an ArrayRecord file.")
    return reader


# Each open shard holds a file descriptor, and a process may be limited to 1024 of them. Opening a shard again takes a
# fraction of a millisecond.
_cached_reader = functools.lru_cache(maxsize=128)(_open)


def read_rows(path: str) -> list[dict]:
    """Reads the clips of a list.

    Args:
        path: train.json or val.json.

    Returns:
        One dictionary per clip, in the order of the list, with the keys `FIELDS`: `name` of the source video, `shard`
        (file beside the list), `position` of the record in it, `label` (from 0, or -1 without a label), number of
        `frames`, `fps` (a fraction as text), `width` and `height` (pixels), `bytes` and `sha256` of the record. A clip
        with several labels has -1 as its `label`, and a list `labels`.

    Raises:
        DataError: the file is missing or is not such a list.
    """
    try:
        content = read_json(path, (dict, list), _LARGEST_LIST)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. python -m input_pipeline.prepare writes it last, after all "
            "shards."
        ) from None
    except JsonError as error:
        raise DataError(f"{path} is not a list of prepared clips: it {error}.") from None
    rows = content.get("clips") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(rows, list):
        raise DataError(
            f"{path} is not a list of prepared clips in format {FORMAT}. Write it with python -m "
            "input_pipeline.prepare."
        )
    for line, row in enumerate(rows, start=2):
        if not isinstance(row, dict) or not row.keys() >= set(FIELDS):
            raise DataError(f"{path} line {line}: expected a clip with the fields {', '.join(FIELDS)}.")
        if not _is_clip(row):
            raise DataError(f"{path} line {line}: a field of this clip is damaged. Restore the list from a copy.")
    return rows


def changed_files(folder: str) -> list[str]:
    """Returns the names of the lists and of the class file in `folder` that differ from its `SHA256SUMS`.

    [] if `prepare` has not written `SHA256SUMS`. The shards are not read.
    """
    try:
        with open(os.path.join(folder, SUMS), encoding="utf-8", errors="surrogateescape") as file:
            sums = [line.rstrip("\n").partition("  ") for line in file]
    except FileNotFoundError:
        return []
    texts = (*_TEXTS, "test.json")  # data without a third part have no test.json
    changed = [name for digest, _, name in sums if name in texts and _sha256_of_file(folder, name) != digest]
    return changed if {name for _, _, name in sums} >= set(_TEXTS) else [*changed, SUMS]


def _sha256_of_file(folder: str, name: str) -> str | None:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _is_clip(row: dict) -> bool:
    """Returns whether the fields that readers take from a row have the types and forms that `prepare` writes."""
    return (
        all(isinstance(row[field], str) for field in ("name", "shard", "sha256"))
        and all(type(row[field]) is int for field in ("label", "position"))
        and row["position"] >= 0
        and (LABELS not in row or isinstance(row[LABELS], list) and all(type(number) is int for number in row[LABELS]))
        and os.path.basename(row["shard"]) == row["shard"] != ""
        and re.fullmatch("[0-9a-f]{64}", row["sha256"]) is not None
    )

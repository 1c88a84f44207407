"""Prepared shards: ArrayRecord files of one short video a record, and the lists that say what is in them.

A list, train.json or val.json, is one JSON object that has a line to itself for every clip. The clips lie in
the shards beside it.
"""

import functools
import json

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from input_pipeline.errors import DataError, DecodeError

FORMAT = 1  # raise it when older readers would misread the lists or the records
FIELDS = ("name", "shard", "position", "label", "frames", "fps", "width", "height", "bytes", "sha256")

# Videos are compressed already; and a group of several would be read whole for one of them.
_WRITE = "group_size:1,uncompressed"
# Random access: reading ahead would fetch neighbours that the shuffled order does not want.
_READ = "readahead_buffer_size:0,max_parallelism:0"


def write_shard(path, videos):
    """Writes the bytes objects `videos`, in their order, to the file `path`.

    Raises:
      OSError: the file cannot be written, for instance because the disk is full.
    """
    try:
        writer = ArrayRecordWriter(path, _WRITE)
        try:
            for video in videos:
                writer.write(video)
        finally:
            writer.close()
    except RuntimeError as error:
        reason = str(error).partition(";")[0].rpartition(": ")[2]
        raise OSError(None, reason, path) from error


def read_shard(path):
    """Iterator over all rows of the shard `path`, bytes. DecodeError as from `read_video`."""
    reader = _open(path)
    for position in range(reader.num_records()):
        yield _read(reader, path, position)


def read_video(path, position) -> bytes:
    """The video in row `position`, counted from 0, of the shard `path`. The shard stays open for the next call.

    Raises:
      DecodeError: the shard is missing or has no such row, or its bytes are not those that were written.
    """
    return _read(_reader(path), path, position)


def _read(reader, path, position):
    try:
        if not 0 <= position < reader.num_records():
            raise DecodeError(f"{path}: there is no row {position}, only {reader.num_records()} rows.")
        return reader.read([position])[0]
    except RuntimeError as error:
        raise DecodeError(f"{path} row {position}: {error}") from error


def _open(path):
    try:
        with open(path, "rb"):  # the reader itself would take a missing file for an empty one
            reader = ArrayRecordReader(path, _READ)
    except (OSError, RuntimeError) as error:
        raise DecodeError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not reader.ok():
        raise DecodeError(f"{path}: this is no ArrayRecord file.")
    return reader


# Each open shard holds a file descriptor, of which a process may have as few as 1024; to open one again takes a
# fraction of a millisecond.
_reader = functools.lru_cache(maxsize=128)(_open)


def read_rows(path) -> list[dict]:
    """The clips of a list, in its order: dictionaries with the keys `FIELDS`.

    `name` is that of the source video, `shard` a file beside the list, `position` the row in it, `label` a number
    from 0 or -1 where there is none, `frames` their number, `fps` a fraction as text, `width` and `height` pixels,
    `bytes` and `sha256` those of the record.

    Raises:
      DataError: the file is missing, or no such list.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; python -m input_pipeline.prepare writes it last, "
            "when every shard is there."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is no list of prepared clips: {error}.") from None
    rows = content.get("clips") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(rows, list):
        raise DataError(
            f"{path} is no list of prepared clips in format {FORMAT}, as python -m input_pipeline.prepare writes it."
        )
    for line, row in enumerate(rows, start=2):
        if not isinstance(row, dict) or not row.keys() >= set(FIELDS):
            raise DataError(f"{path} line {line}: expected a clip with the fields {', '.join(FIELDS)}.")
    return rows

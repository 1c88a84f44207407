"""Shards return the bytes that were written, or raise. Files that are not lists are refused by one sentence."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.shards import FIELDS, FORMAT, read_rows, read_shard, read_video, write_shard
from input_pipeline.sources import shards as source

FLIPS = 200


def videos(count=10):
    rng = np.random.default_rng(0)
    return [rng.bytes(int(size)) for size in rng.integers(100, 40_000, count)]


@pytest.mark.quick
def test_rows_are_read_in_any_order(tmp_path):
    path, written = str(tmp_path / "a.array_record"), videos()
    write_shard(path, written)
    for position in (3, 0, 9, 3):
        assert read_video(path, position) == written[position]
    assert list(read_shard(path)) == written


@pytest.mark.quick
def test_equal_videos_give_equal_files(tmp_path):
    for name in "ab":
        write_shard(str(tmp_path / name), videos())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shard_without_videos(tmp_path):
    path = str(tmp_path / "none.array_record")
    write_shard(path, [])
    assert list(read_shard(path)) == []


@pytest.mark.quick
def test_a_clip_that_its_list_does_not_describe_is_a_decode_error(tmp_path):
    path, written = str(tmp_path / "a.array_record"), videos(2)
    write_shard(path, written)
    digests = [hashlib.sha256(video).digest() for video in written]
    assert read_video(path, 1, digests[1]) == written[1]
    with pytest.raises(DecodeError, match=r"a\.array_record row 1: the clip differs from the SHA-256 in its list"):
        read_video(path, 1, digests[0])


def test_flipped_bits_always_raise(tmp_path):
    path, written = tmp_path / "clean.array_record", videos()
    write_shard(str(path), written)
    clean, rng = path.read_bytes(), np.random.default_rng(1)
    starts = [clean.index(video[:64]) for video in written]
    for flip in range(FLIPS):
        position = int(rng.integers(len(written)))
        damaged = bytearray(clean)
        for place in rng.choice(len(written[position]), rng.integers(1, 4), replace=False):
            damaged[starts[position] + place] ^= 1 << rng.integers(8)
        path = str(tmp_path / f"{flip}.array_record")  # a new name, because shards stay open
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(DecodeError, match=rf"{flip}\.array_record row {position}: "):
            read_video(path, position)
        os.remove(path)


def test_damage_anywhere_is_never_silent(tmp_path):
    """In headers, indices and padding, too: each row has the bytes that were written, or raises."""
    path, written = tmp_path / "clean.array_record", videos()
    write_shard(str(path), written)
    clean, rng, raised = path.read_bytes(), np.random.default_rng(2), 0
    for flip in range(100):
        damaged = bytearray(clean)
        damaged[rng.integers(len(clean))] ^= 1 << rng.integers(8)
        path = str(tmp_path / f"{flip}.array_record")
        with open(path, "wb") as file:
            file.write(damaged)
        for position, video in enumerate(written):
            try:
                assert read_video(path, position) == video
            except DecodeError:
                raised += 1
        os.remove(path)
    assert raised


@pytest.mark.parametrize(
    "content, position",
    [(b"", 0), (b"no shard at all\n" * 100, 0), (None, 0), ("half", 0), ("whole", 10), ("whole", -1)],
)
def test_what_cannot_be_read_is_a_decode_error(tmp_path, content, position):
    path = tmp_path / "bad.array_record"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write_shard(str(path), videos())
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if content == "half" else data)
    with pytest.raises(DecodeError, match=r"bad\.array_record"):
        read_video(str(path), position)


def test_open_shards_are_bounded(tmp_path):
    write_shard(str(tmp_path / "0"), [b"video"])
    for number in range(1, 300):
        shutil.copy(tmp_path / "0", tmp_path / str(number))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        assert read_video(str(tmp_path / str(number)), 0) == b"video"
    assert len(os.listdir("/proc/self/fd")) - before < 150


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError) as raised:
        write_shard(str(tmp_path / "no" / "folder"), [b"video"])
    assert raised.value.strerror == "No such file or directory" and raised.value.filename.endswith("no/folder")


def clip(**values):
    return {
        **dict.fromkeys(FIELDS, 0),
        "name": "a.mp4",
        "shard": "train-00000-of-00001.array_record",
        "sha256": 64 * "0",
        **values,
    }


DAMAGED = (
    dict(name=3),
    dict(shard="../train-00000-of-00001.array_record"),
    dict(shard=""),
    dict(position=-1),
    dict(position="3"),
    dict(label=None),
    dict(sha256="0123"),
)


@pytest.mark.quick
def test_the_source_gives_the_entries_of_a_list(tmp_path):
    rows = [clip(position=3, label=2), clip(name="b/c.webm", position=4, label=-1)]
    (tmp_path / "train.json").write_text(json.dumps({"format": FORMAT, "clips": rows}))
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\n")
    path = str(tmp_path / source.TRAIN[0])
    first, second = source.read(path, root=str(tmp_path), split=1).entries
    assert (first.name, first.label, first.position, first.line) == ("a.mp4", 2, 3, 2)
    assert first.path == str(tmp_path / "train-00000-of-00001.array_record")
    assert (second.name, second.label, second.position, second.start) == ("b/c.webm", None, 4, None)
    assert source.classes(str(tmp_path), path) == ("zero", "one", "two")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "No such file"),
        ("", "is not a list"),
        ("[1, 2]", "is not a list"),
        ('{"format": 99, "clips": []}', "format 1"),
        ('{"format": 1, "clips": 3}', "is not a list"),
        ('{"format": 1, "clips": [\n{"name": "a"}\n]}', "line 2: expected"),
        (b"\xff\xfe", "is not a list"),
        (100_000 * "[", "is not a list"),
        *((json.dumps({"format": FORMAT, "clips": [clip(), clip(**values)]}), "line 3: a field") for values in DAMAGED),
    ],
)
def test_other_lists_are_refused(tmp_path, content, sentence):
    path = tmp_path / "train.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=sentence) as raised:
        read_rows(str(path))
    assert "train.json" in str(raised.value)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="classes.txt"):
        source.classes(str(tmp_path), str(tmp_path / "train.json"))

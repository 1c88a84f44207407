"""JSON of any content ends in a value of the expected type or in a sentence, in bounded time and memory."""

import json
import os

import pytest

from input_pipeline import json_files
from input_pipeline.json_files import JsonError, open_regular, parse_json, read_json

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "text, sentence",
    [
        (b"", "is not JSON: Expecting value in line 1"),
        (b"\xff{}", "is not UTF-8 text: byte 0 is invalid"),
        (b"[" * 200_000, "is nested more than 100 levels deep"),
        (b"[" * 101 + b"]" * 101, "is nested more than 100 levels deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "is nested more than 100 levels deep"),
        (b"1" * 5000, "a number has too many digits"),
        (b'{"config": {}, "config": {"classes": []}}', "gives the key 'config' more than once"),
        (b'[{"a": 1, "b": 2, "a": 1}]', "gives the key 'a' more than once"),
        (b"[1]", "holds a list instead of an object"),
        (b"null", "holds null instead of an object"),
        (b'{"model": {}}', "has no field 'config'"),
        (b'{"config": 3}', "holds a number as 'config' instead of an object"),
        (b'{"config": {}}', "has no field 'config.classes'"),
        (b'{"config": {"classes": "a"}}', "holds a text as 'config.classes' instead of a list or null"),
        (b'{"config": {"classes": [], "frames": true}}', "true or false as 'config.frames' instead of a number"),
    ],
)
def test_text_that_is_not_the_expected_json_is_refused(text, sentence):
    kind = {"config": {"classes": (list, type(None)), "frames": int}}
    with pytest.raises(JsonError, match=sentence):
        parse_json(text, kind)


def test_expected_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"config": {"classes": null, "rate": 1}, "more": ' + b"[" * 99 + b"]" * 99 + b"}")
    content = read_json(path, {"config": {"classes": (list, type(None)), "rate": float}})
    assert content["config"] == {"classes": None, "rate": 1}


def test_text_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(json_files, "_FREE_MEMORY", 1000)
    with pytest.raises(JsonError, match="would take about . MiB of memory"):
        parse_json("[" + "{}," * 30_000 + "{}]", list)
    clips = [{"name": f"a clip of some name {i}", "sha256": "0" * 64, "label": i, "fps": "25/1"} for i in range(99)]
    assert parse_json(json.dumps(clips, separators=(",", ":")), list) == clips


def test_large_files_and_those_that_are_not_regular_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe or a device, not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_json("/dev/zero")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(JsonError, match="has 8 bytes, and files of its kind have at most 7"):
        read_json(tmp_path / "a.json", most_bytes=7)

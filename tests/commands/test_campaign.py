"""The runner of the campaign, with a part of a few cases, and the damage that it does to files."""

import importlib
import json
import random

import pytest
from house import ROOT

from benchmarks import campaign
from benchmarks.campaign import damage, runner

quick = pytest.mark.quick

PART = """
import os, time
COUNT, SECONDS, BYTES = 5, 0.5, 2**30

def case_set(number):
    return ("even", "odd")[number % 2]

def prepare(folder):
    (folder / "prepared").touch()

def run_case(number, folder):
    assert (folder / "prepared").exists()
    if number == 1:
        raise ValueError("of case 1")
    if number == 2:
        os.abort()
    if number == 3:
        time.sleep(60)
    print("words of a library")
    return {"outcome": "good", "failed": False, "value": number}
"""


@quick
def test_failures_are_recorded_and_a_part_that_was_stopped_continues(tmp_path, monkeypatch, capsys):
    (tmp_path / "part_of_tests.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "cases"
    assert runner.run_part("part_of_tests", folder, 0, minutes=-1.0) == (None, 0)
    results, ran = runner.run_part("part_of_tests", folder, 2, minutes=1.0)
    assert [result["outcome"] for result in results] == ["good", "traceback: ValueError: of case 1"] and ran == 2
    results, ran = runner.run_part("part_of_tests", folder, 0, minutes=1.0)
    assert [result["outcome"] for result in results[2:]] == ["crash: SIGABRT", "hang: over 0.5 s", "good"] and ran == 3
    assert [result["failed"] for result in results] == [False, True, True, True, False]
    capsys.readouterr()
    even, odd = runner.summarise("tests", results)
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == [even, odd]
    assert even["outcomes"] == {"good": 2, "crash: SIGABRT": 1} and (even["cases"], even["failed"]) == (3, 1)
    assert even["largest"]["value"] == 4 and [failure["case"] for failure in odd["failures"]] == [1, 3]
    runner.record([even, odd], tmp_path / "results" / "campaign.jsonl")
    assert len((tmp_path / "results" / "campaign.jsonl").read_text().splitlines()) == 2


@quick
@pytest.mark.parametrize("name", campaign.PARTS)
def test_every_part_has_what_the_runner_calls(name):
    part = importlib.import_module(f"benchmarks.campaign.{name}")
    assert part.COUNT > 0 and part.SECONDS > 0 and part.BYTES > 0
    assert callable(part.prepare) and callable(part.run_case)
    assert all(isinstance(part.case_set(number), str) for number in range(part.COUNT))
    page = (ROOT / "docs" / "campaign.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page


@quick
@pytest.mark.parametrize("kind", damage.KINDS)
def test_damage_changes_most_files_and_depends_on_the_seed_alone(kind):
    content = random.Random(0).randbytes(50_000)
    damaged = [kind(content, random.Random(seed)) for seed in range(9)]
    assert damaged == [kind(content, random.Random(seed)) for seed in range(9)]
    assert sum(result != content for result in damaged) >= 8 and len(set(damaged)) >= 8
    for short in (b"", b"a"):
        assert isinstance(kind(short, random.Random(1)), bytes)

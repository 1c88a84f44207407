"""`make matrix` counts every failure, tells an interpreter that is missing, and keeps the rows of other machines."""

import json

import matrix
import pytest

pytestmark = pytest.mark.quick

RESULT = {
    "python": "3.12.1",
    "versions": [{"name": "jax", "version": "0.11.2"}, {"name": "opencv-python", "version": "4.12.0.88"}],
    **{"passed": 5, "failed": 0, "skipped": 1, "demo": "97.0%", "minutes": 20.5},
    **{"commit": "abc", "date": "2026-11-29", "requirements": "hash"},
}


def test_an_error_of_pytest_counts_as_a_failure(tmp_path):
    report = tmp_path / "report.xml"
    assert matrix.counts(report, 3)["failed"] == 1
    report.write_text('<testsuites><testsuite tests="9" failures="0" errors="0" skipped="2" /></testsuites>')
    assert matrix.counts(report, 0) == {"passed": 7, "failed": 0, "skipped": 2}
    assert matrix.counts(report, 3)["failed"] == 1
    report.write_text('<testsuites><testsuite tests="9" failures="2" errors="1" skipped="0" /></testsuites>')
    assert matrix.counts(report, 1) == {"passed": 6, "failed": 3, "skipped": 0}


def test_rows_of_other_machines_stay():
    before = matrix.page({"newest-3.13": RESULT, "newest-3.12": RESULT | {"passed": 4}})
    rows = [line for line in matrix.page({"newest-3.12": RESULT}, before).splitlines() if line.startswith("| newest")]
    assert rows == [
        "| newest-3.12 | 3.12.1 | 0.11.2 | - | - | - | - | - | 4.12.0.88 | - | - | 5 | 0 | 1 | 97.0% | 20.5 | abc "
        "| 2026-11-29 |",
        "| newest-3.13 | 3.12.1 | 0.11.2 | - | - | - | - | - | 4.12.0.88 | - | - | 5 | 0 | 1 | 97.0% | 20.5 | abc "
        "| 2026-11-29 |",
    ]


def test_what_passed_is_not_run_again_and_what_changed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "requirements_hash", lambda: "hash")
    monkeypatch.setattr(matrix, "commit", lambda folder: "def")
    ran = []
    monkeypatch.setattr(matrix, "run", lambda *arguments: ran.append(arguments) or RESULT)
    (tmp_path / "newest-3.12").mkdir()

    def store(**changes):
        ran.clear()
        (tmp_path / "newest-3.12" / "result.json").write_text(json.dumps(RESULT | changes))

    store()
    assert matrix.passes("newest-3.12", fresh=False) and not ran
    assert "passed at abc, and the commit is now def" in capsys.readouterr().out
    assert matrix.passes("newest-3.12", fresh=True) and ran
    for changes in ({"failed": 1}, {"demo": "failed"}, {"passed": 0}):
        store(**changes)
        assert matrix.passes("newest-3.12", fresh=False) and ran
    store(requirements="other")
    assert matrix.passes("newest-3.12", fresh=False) and ran
    assert "requirements changed since abc" in capsys.readouterr().out


def test_an_interpreter_that_is_missing_is_told(tmp_path, monkeypatch, capsys):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "requirements_hash", lambda: "hash")
    monkeypatch.setattr(matrix, "commit", lambda folder: "def")
    monkeypatch.setattr(matrix, "run", lambda name, requirements: matrix.interpreter("3.13"))
    assert not matrix.passes("newest-3.13", fresh=False)
    assert capsys.readouterr().out.startswith("newest-3.13: not run, since Python 3.13 was not found.")

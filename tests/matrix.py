"""Runs the tests and the demo in fresh environments of several Pythons and versions of packages: `make matrix`.

Environments and results lie in `.cache/matrix`. A finished environment is not run again until a file of requirements
changes, so the command goes on where it was stopped. `docs/matrix.md` holds the table of all results.
"""

import argparse
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / "matrix"
PAGE = ROOT / "docs" / "matrix.md"
FILES = ("requirements.txt", "requirements-test.txt", "constraints.txt", "colab/install.py")
ALL = ("-r", "requirements.txt", "-r", "requirements-test.txt")
# What the notebook's test needs beside the packages of the notebook.
NOTEBOOK_TEST = ("pytest", "pytest-xdist", "hypothesis", "nbclient", "ipykernel")
# Versions of November 2025, as a notebook service had them then.
YEAR_AGO = (
    "jax==0.7.2",
    "numpy==2.0.2",
    "opencv-python==4.12.0.88",
    "pillow==11.3.0",
    "matplotlib==3.10.0",
    "ipykernel==6.30.1",
)
# The versions of Python and what is installed. Those of the notebook run its install cell after these packages.
ENVIRONMENTS = {
    "constraints-3.11": ("3.11", (*ALL, "-c", "constraints.txt")),
    "constraints-3.12": ("3.12", (*ALL, "-c", "constraints.txt")),
    "constraints-3.13": ("3.13", (*ALL, "-c", "constraints.txt")),
    "newest-3.12": ("3.12", ALL),
    "newest-3.13": ("3.13", ALL),
    "oldest-3.11": ("3.11", ("--resolution", "lowest-direct", *ALL)),
    "notebook-3.12": ("3.12", ("packaging", "ipykernel")),
    "notebook-2025-3.12": ("3.12", ("packaging", *YEAR_AGO)),
}
SHOWN = ("jax", "flax", "orbax-checkpoint", "grain", "numpy", "av", "opencv", "pillow", "pytest")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; by default all")
    parser.add_argument("--fresh", action="store_true", help="also run environments that have finished")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"no such environment: {', '.join(sorted(unknown))}. There are {', '.join(ENVIRONMENTS)}.")
    names = options.names or list(ENVIRONMENTS)
    for name in names:
        if options.fresh or not is_finished(name):
            run(name)
        else:
            print(f"{name}: has finished; --fresh runs it again.", flush=True)
    PAGE.write_text(page({name: result for name in ENVIRONMENTS if (result := read_result(name))}))
    print(PAGE.read_text())
    results = [read_result(name) for name in names]
    return (
        0 if all(result["passed"] and not result["failed"] and result["demo"] != "failed" for result in results) else 1
    )


def run(name: str) -> None:
    """Makes the environment anew and runs the tests and the demo, or the notebook, in a clone of the last commit."""
    python, packages = ENVIRONMENTS[name]
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    clone = folder / "clone"
    call("git", "clone", "--quiet", str(ROOT), str(clone))
    call("uv", "venv", "--quiet", "--seed", "--python", python, str(folder / "venv"))
    binary = folder / "venv" / "bin" / "python"
    install = ("uv", "pip", "install", "--quiet", "--python", str(binary))
    call(*install, *packages, cwd=clone)
    is_notebook = name.startswith("notebook")
    tests = "tests/commands/test_notebook.py" if is_notebook else "tests"
    if is_notebook:
        call(str(binary), "colab/install.py", cwd=clone)
        call(*install, *NOTEBOOK_TEST, "-c", str(frozen(binary, folder / "notebook.txt")))
    print(f"{name}: testing", flush=True)
    report = folder / "report.xml"
    parallel = ("-n", "auto", "--maxprocesses=8", "--dist", "loadfile", "--no-loadscope-reorder")
    command = (str(binary), "-m", "pytest", tests, "-q", f"--junit-xml={report}", *parallel)
    with open(folder / "tests.txt", "w") as output:
        subprocess.run(command, cwd=clone, stdout=output, stderr=subprocess.STDOUT)
    result = counts(report)
    if is_notebook:
        result["demo"] = "-"
    else:
        print(f"{name}: demo", flush=True)
        with open(folder / "demo.txt", "w") as output:
            demo = (str(binary), "main.py", "--config=configs/demo.py")
            status = subprocess.run(demo, cwd=clone, stdout=output, stderr=subprocess.STDOUT).returncode
        result["demo"] = "failed" if status else top1(clone / "runs" / "demo" / "metrics.jsonl")
    result |= {
        "python": output_of(str(binary), "-c", "import platform; print(platform.python_version())"),
        "versions": json.loads(output_of("uv", "pip", "list", "--quiet", "--format=json", "--python", str(binary))),
        "commit": output_of("git", "rev-parse", "--short", "HEAD", cwd=clone),
        "date": f"{datetime.date.today()}",
        "minutes": round((time.monotonic() - start) / 60, 1),
        "requirements": requirements_hash(),
    }
    (folder / "result.json").write_text(json.dumps(result))
    print(f"{name}: {result['passed']} passed, {result['failed']} failed; demo {result['demo']}", flush=True)
    shutil.rmtree(clone)  # the environment stays, for a look at what failed


def call(*command: str, **options) -> None:
    """Runs a command. Ends this one with its message if it fails."""
    if subprocess.run(command, **options).returncode:
        sys.exit(f"matrix: {' '.join(command)} failed. If a Python is missing, install it, and put it on the PATH.")


def output_of(*command: str, **options) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.strip()


def frozen(binary: Path, file: Path) -> Path:
    """Writes the versions of all packages of the environment, so that the tests' own packages change none of them."""
    file.write_text(output_of("uv", "pip", "freeze", "--quiet", "--python", str(binary)))
    return file


def counts(report: Path) -> dict[str, int]:
    """Returns the numbers of tests that passed, failed and were skipped. Without a report, one failed."""
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    return {"passed": tests - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


def top1(metrics: Path) -> str:
    """Returns the last accuracy of a run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return f"{[row['val/top1@1x1'] for row in rows if 'val/top1@1x1' in row][-1]:.1%}"


def requirements_hash() -> str:
    return hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in FILES)).hexdigest()


def read_result(name: str) -> dict | None:
    file = FOLDER / name / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def is_finished(name: str) -> bool:
    result = read_result(name)
    return result is not None and result["requirements"] == requirements_hash()


def page(results: dict[str, dict]) -> str:
    """Returns the page with the table of the results."""
    head = ("environment", "Python", *SHOWN, "passed", "failed", "skipped", "demo, top-1", "minutes", "commit", "date")
    rows = [
        (
            name,
            result["python"],
            *(_version(result["versions"], package) for package in SHOWN),
            *(str(result[key]) for key in ("passed", "failed", "skipped", "demo", "minutes", "commit", "date")),
        )
        for name, result in results.items()
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
    return f"{_INTRODUCTION.format(cores=os.cpu_count())}\n{table}\n"


def _version(packages: list[dict], name: str) -> str:
    versions = (p["version"] for p in packages if p["name"] == name or name == "opencv" in p["name"])
    return " ".join(dict.fromkeys(versions)) or "-"


_INTRODUCTION = """# Versions that were tried

`make matrix` makes these environments from nothing, and runs all tests and the demo in each. `constraints` are the
versions of `constraints.txt`, `newest` the newest that the ranges of `requirements.txt` admit, and `oldest` the oldest
direct ones. `notebook` is an environment made by the install cell of the notebook alone, and `notebook-2025` one in
which the cell found JAX, NumPy, OpenCV, Pillow and matplotlib of November 2025. Both run the cells of the notebook. The
last column but one is the commit. Measured on {cores} CPU cores.
"""

if __name__ == "__main__":
    sys.exit(main())

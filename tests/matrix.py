"""Runs the tests and the demo in fresh environments of several Pythons and versions of packages: `make matrix`.

Environments and results lie in `.cache/matrix`. The command goes on where it was stopped: an environment whose tests
passed is not run again until a file of requirements changes. `docs/matrix.md` holds the table of the last results. Rows
of environments that have not run on this machine stay as they are, so several machines can share the work.
"""

import argparse
import datetime
import hashlib
import json
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


class NotRun(Exception):
    """An environment that cannot be made here, and why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; by default all")
    parser.add_argument("--fresh", action="store_true", help="also run environments that have passed")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"no such environment: {', '.join(sorted(unknown))}. There are {', '.join(ENVIRONMENTS)}.")
    names = options.names or list(ENVIRONMENTS)
    if output_of("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT):
        print("The last commit is tested, without the changes of this folder that are not committed.", flush=True)
    failed = [name for name in names if not passes(name, options.fresh)]
    results = {name: result for name in ENVIRONMENTS if (result := read_result(name))}
    PAGE.write_text(page(results, PAGE.read_text() if PAGE.exists() else ""))
    print(PAGE.read_text())
    if failed:
        print(f"Failed: {' '.join(failed)}. The outputs are in {FOLDER.relative_to(ROOT)}/NAME.")
    return 1 if failed else 0


def passes(name: str, fresh: bool) -> bool:
    """Runs an environment unless it has passed with these requirements. Returns whether all of it passed."""
    result, requirements, head = read_result(name), requirements_hash(), commit(ROOT)
    if result and result["requirements"] != requirements:
        print(f"{name}: a file of requirements changed since {result['commit']}.", flush=True)
    elif result and is_green(result) and not fresh:
        other = "" if result["commit"] == head else f", and the commit is now {head}"
        print(f"{name}: passed at {result['commit']}{other}. FRESH=1 runs it again.", flush=True)
        return True
    try:
        return is_green(run(name, requirements))
    except NotRun as error:
        print(f"{name}: {error}", flush=True)
        return False


def is_green(result: dict) -> bool:
    return result["passed"] > 0 and not result["failed"] and result["demo"] != "failed"


def run(name: str, requirements: str) -> dict:
    """Makes the environment anew and runs the tests and the demo, or the notebook, in a clone of the last commit.

    Args:
        name: a name of `ENVIRONMENTS`.
        requirements: the hash of the files of requirements, which the result keeps.

    Returns:
        The numbers of tests, the accuracy of the demo, versions, commit, date and minutes. `result.json` holds them.

    Raises:
        NotRun: the interpreter is missing, or the packages cannot be installed.
    """
    python, packages = ENVIRONMENTS[name]
    folder, executable = FOLDER / name, interpreter(python)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    clone = folder / "clone"
    call("git", "clone", "--quiet", str(ROOT), str(clone))
    # The tests' compiled programs. Their keys hold the version of jaxlib, so that environments can share them.
    (FOLDER / "compiled").mkdir(exist_ok=True)
    (clone / ".cache").symlink_to(FOLDER / "compiled")
    call("uv", "venv", "--quiet", "--seed", "--python", executable, str(folder / "venv"))
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
        status = subprocess.run(command, cwd=clone, stdout=output, stderr=subprocess.STDOUT).returncode
    result = counts(report, status)
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
        "commit": commit(clone),
        "date": f"{datetime.date.today()}",
        "minutes": round((time.monotonic() - start) / 60, 1),
        "requirements": requirements,
    }
    (folder / "result.json").write_text(json.dumps(result))
    print(f"{name}: {result['passed']} passed, {result['failed']} failed; demo {result['demo']}", flush=True)
    shutil.rmtree(clone)  # the environment stays, for a look at what failed
    return result


def interpreter(python: str) -> str:
    """Returns the path of this version of Python on this machine.

    Raises:
        NotRun: there is none. uv would otherwise download one.
    """
    command = ("uv", "python", "find", "--no-python-downloads", "--no-project", "--system", python)
    try:
        return output_of(*command)
    except subprocess.CalledProcessError:
        raise NotRun(f"not run, since Python {python} was not found. Install it, or put it on the PATH.") from None


def call(*command: str, **options) -> None:
    """Runs a command. Raises `NotRun` if it fails, which it has explained itself."""
    if subprocess.run(command, **options).returncode:
        raise NotRun(f"not run, since this failed: {' '.join(command)}")


def output_of(*command: str, **options) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout.strip()


def frozen(binary: Path, file: Path) -> Path:
    """Writes the versions of all packages of the environment, so that the tests' own packages change none of them."""
    file.write_text(output_of("uv", "pip", "freeze", "--quiet", "--python", str(binary)))
    return file


def commit(folder: Path) -> str:
    return output_of("git", "rev-parse", "--short", "HEAD", cwd=folder)


def counts(report: Path, status: int) -> dict[str, int]:
    """Returns the numbers of tests that passed, failed and were skipped.

    Args:
        report: the report of pytest in the format of JUnit.
        status: the exit status of pytest. An error of pytest itself counts as a test that failed.
    """
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": tests - failed - skipped, "failed": failed or int(status != 0), "skipped": skipped}


def top1(metrics: Path) -> str:
    """Returns the last accuracy of a run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return f"{[row['val/top1@1x1'] for row in rows if 'val/top1@1x1' in row][-1]:.1%}"


def requirements_hash() -> str:
    """Returns a hash of the files of requirements in the last commit."""
    return hashlib.sha256("".join(output_of("git", "show", f"HEAD:{f}", cwd=ROOT) for f in FILES).encode()).hexdigest()


def read_result(name: str) -> dict | None:
    file = FOLDER / name / "result.json"
    return json.loads(file.read_text()) if file.exists() else None


def page(results: dict[str, dict], before: str = "") -> str:
    """Returns the page with the table of the results. Environments without a result keep their row of `before`."""
    head = ("environment", "Python", *SHOWN, "passed", "failed", "skipped", "demo", "minutes", "commit", "date")
    rows = {line.split(" ")[1]: line for line in before.splitlines() if line.count("|") == len(head) + 1}
    for name, result in results.items():
        rows[name] = _row(
            name,
            result["python"],
            *(_version(result["versions"], package) for package in SHOWN),
            *(str(result[key]) for key in head[-7:]),
        )
    table = (_row(*head), _row(*("---",) * len(head)), *(rows[name] for name in ENVIRONMENTS if name in rows))
    return "\n".join((_INTRODUCTION, *table, ""))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _version(packages: list[dict], name: str) -> str:
    versions = (p["version"] for p in packages if p["name"] == name or name == "opencv" in p["name"])
    return " ".join(dict.fromkeys(versions)) or "-"


_INTRODUCTION = """# Versions that were tried

`make matrix` makes these environments from nothing, and runs all tests and the demo in each. `constraints` are the
versions of `constraints.txt`, `newest` the newest that the ranges of `requirements.txt` admit, and `oldest` the oldest
direct ones. `notebook` is an environment made by the install cell of the notebook alone, and `notebook-2025` one in
which the cell found JAX, NumPy, OpenCV, Pillow and matplotlib of November 2025. Both run the cells of the notebook.
`demo` is the top-1 accuracy of the demo. Minutes include the installation.
"""

if __name__ == "__main__":
    sys.exit(main())

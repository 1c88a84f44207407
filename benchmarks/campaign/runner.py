"""Runs the cases of a part one after another in a process of its own, and summarises the results."""

import collections
import contextlib
import datetime
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.campaign.processes import ROOT, resident_bytes

_PREPARING_SECONDS = 600
_SHOWN_FAILURES = 20


def run_part(module: str, folder: Path, count: int, minutes: float) -> tuple[list[dict] | None, int]:
    """Runs the cases of the part `module` that `folder` does not hold yet.

    Args:
        count: run only the first `count` cases, 0 for all.
        minutes: stop after this time.

    Returns:
        The results by number, or None if there was not enough time, and how many cases ran.
    """
    from vidformers.training.commit import git_commit

    part, started = importlib.import_module(module), time.monotonic()
    count = min(count or part.COUNT, part.COUNT)
    commit = git_commit("vidformers", "input_pipeline", "configs", "benchmarks/campaign")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cases.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {result["case"]: result for result in map(json.loads, lines)}
    missing, server = [number for number in range(count) if number not in done], None
    try:
        for position, number in enumerate(missing):
            if time.monotonic() - started > minutes * 60:
                return None, position
            if server is None or server.ended:
                server = _Server(module, folder, part.BYTES)
            begun = time.monotonic()
            answer = server.run(number, part.SECONDS)
            seconds = round(time.monotonic() - begun, 3)
            done[number] = {
                "case": number, "set": part.case_set(number), **answer, "seconds": seconds, "commit": commit
            }  # fmt: skip
            with open(path, "a", encoding="utf-8") as file:
                print(json.dumps(done[number]), file=file)
            if answer["failed"]:
                print(f"{module}: case {number} failed: {answer['outcome']}", flush=True)
    finally:
        if server is not None:
            server.end()
    return [done[number] for number in range(count)], len(missing)


def summarise(name: str, results: list[dict]) -> list[dict]:
    """Prints and returns one line for each set of cases."""
    from benchmarks.measure import processor, versions  # imports JAX, which this process does not need before

    lines = []
    for case_set in dict.fromkeys(result["set"] for result in results):
        chosen = [result for result in results if result["set"] == case_set]
        figures = {key for result in chosen for key, value in result.items() if isinstance(value, float | int)}
        line = {
            "benchmark": "campaign",
            "part": name,
            "set": case_set,
            "cases": len(chosen),
            "failed": sum(result["failed"] for result in chosen),
            "outcomes": dict(collections.Counter(result["outcome"][:200] for result in chosen).most_common()),
            "largest": {
                key: max(result.get(key, 0) for result in chosen) for key in sorted(figures - {"case", "failed"})
            },
            "failures": [result for result in chosen if result["failed"]][:_SHOWN_FAILURES],
            "seconds": round(sum(result["seconds"] for result in chosen)),
            "commits": sorted({str(result["commit"]) for result in chosen}),
            "date": datetime.date.today().isoformat(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "versions": versions(),
        }
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def record(lines: list[dict], path: Path) -> None:
    """Appends the lines to the file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for line in lines:
            print(json.dumps(line), file=file)


class _Server:
    """A process that runs cases on request. What it prints goes to `folder`/output.txt."""

    def __init__(self, module: str, folder: Path, max_bytes: int):
        self._max_bytes, self._base_bytes = max_bytes, 0
        with open(folder / "output.txt", "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.campaign.runner", module, str(folder)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        ready = self._wait(_PREPARING_SECONDS)
        if ready is None or ready["failed"]:
            self.end()
            raise SystemExit(f"{module}: the preparation failed. See {folder}/output.txt.")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def run(self, number: int, seconds: float) -> dict:
        """Runs a case. Returns its result, or how it ended the process."""
        self._base_bytes = resident_bytes(self._process.pid)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{number}\n".encode())
            self._process.stdin.flush()
        answer = self._wait(seconds)
        if answer is None:
            status = self._process.wait()
            cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            answer = {"outcome": f"crash: {cause}", "failed": True}
        return answer

    def _wait(self, seconds: float) -> dict | None:
        """Returns the next answer, None if the process ends. Ends a process that takes too long or too much memory."""
        deadline = time.monotonic() + seconds
        while True:
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                line = self._process.stdout.readline()
                return json.loads(line) if line else None
            used = resident_bytes(self._process.pid) - self._base_bytes
            if time.monotonic() > deadline:
                problem = f"hang: over {seconds:g} s"
            elif self._base_bytes and used > self._max_bytes:
                problem = f"memory: over {self._max_bytes / 2**20:.0f} MiB"
            else:
                continue
            self.end()
            return {"outcome": problem, "failed": True}

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def serve(module: str, folder: Path) -> None:
    """Runs in the process of a `_Server`: answers every number on stdin by one line with the result of the case."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries must not print between the answers
    part = importlib.import_module(module)
    part.prepare(folder)
    print(json.dumps({"outcome": "ready", "failed": False}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = part.run_case(int(line), folder)
        except Exception as error:
            traceback.print_exc()
            answer = {"outcome": f"traceback: {type(error).__name__}: {error}", "failed": True}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))

"""Prints the lines of benchmarks.ahead and of plans as tables in Markdown, those of docs/estimates.md.

Command: python -m benchmarks.ahead_table FILE.jsonl ... [--meshes]

A line of a plan is the last line that `main.py --mode=plan` prints. Of several lines for the same program, the last one
counts. Lines whose commit starts with 01dfe16 or 2c282b4 are those before the layout for TPUs and GPUs. With --meshes
the table of several devices is printed, too.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.models import CONFIGS

_BEFORE = ("01dfe16", "2c282b4")
_MESH = "mesh."


def read(paths: Iterable[str]) -> list[dict]:
    """Returns the lines of training steps and of plans in files."""
    lines = (json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.get("step", "train") == "train"]


def newest(lines: Iterable[dict]) -> dict[tuple, dict]:
    """Returns the last line of each program, by (config, topology, mesh, clips, changed fields without the mesh)."""
    return {
        (line["config"], line["topology"], _mesh(line), line["clips"], _changes(line)): line
        for line in sorted(lines, key=lambda line: CONFIGS.index(line["config"]))
    }


def one_device(lines: list[dict]) -> Iterator[str]:
    """Yields the table of one TPU v5e."""
    columns = ("config", "clips", "changes", "before: ms, share", "ms", "share", "GiB", "compiled in")
    yield from _head(*columns, "guess for kernels, share with it")
    before, after = _before_and_after(lines)
    for key, line in after.items():
        config, topology, _, clips, changes = key
        if topology != "v5e:1x1" or line["estimated_seconds"] is None:
            continue
        old, guess = before.get(key), line["unestimated_guess_seconds"]
        row = (
            f"`{config}`",
            clips,
            changes or "",
            _time_before(old, line["products_seconds"]),
            _ms(line),
            _percent(line),
            _gib(line),
            f"{line['compile_seconds']:.0f} s",
            _with_guess(line, guess) if guess > 1e-3 else "",
        )
        yield f"| {' | '.join(map(str, row))} |"


def one_gpu(lines: list[dict]) -> Iterator[str]:
    """Yields the table of one H100."""
    yield from _head("config", "clips", "changes", "GiB", "compiled in")
    for (config, topology, _, clips, changes), line in _before_and_after(lines)[1].items():
        if topology == "h100:1":
            yield f"| `{config}` | {clips} | {changes} | {_gib(line)} | {line['compile_seconds']:.0f} s |"


def plans(lines: list[dict]) -> Iterator[str]:
    """Yields the table of plans."""
    columns = ("config", "topology", "changes", "batch", "micro-batches", "clips on a shard", "fits", "GiB")
    yield from _head(*columns, "a step takes at least")
    for line in lines:
        if "fits" in line:
            row = (
                f"`{line['config']}`",
                line["topology"],
                ", ".join(f"`{name}={value}`" for name, value in line["changes"].items()),
                line["batch_size"],
                line["accumulate"],
                line["clips"],
                "yes" if line["fits"] else "no",
                _gib(line),
                f"{line['at_least_seconds'] * 1e3:.0f} ms",
            )
            yield f"| {' | '.join(map(str, row))} |"


def meshes(lines: list[dict]) -> Iterator[str]:
    """Yields the table of several devices."""
    columns = ("topology", "config", "mesh", "clips on a shard", "GiB", "compiled in")
    yield from _head(*columns, "exchanged on a device in a step")
    found = _before_and_after(lines)[1]
    for (config, topology, mesh, clips, _), line in sorted(found.items(), key=lambda item: item[0][1]):
        if not mesh:
            continue
        exchanges = (
            f"{kind} {each['bytes'] / 1e6:.0f} MB in {each['count']}"
            for kind, each in sorted(line["exchanges"].items())
        )
        row = (
            topology,
            f"`{config}`",
            mesh,
            clips,
            _gib(line),
            f"{line['compile_seconds']:.0f} s",
            "; ".join(exchanges),
        )
        yield f"| {' | '.join(map(str, row))} |"


def _before_and_after(lines: list[dict]) -> tuple[dict, dict]:
    compiled = [line for line in lines if "step" in line]
    is_before = [line["commit"].startswith(_BEFORE) for line in compiled]
    before, after = (
        [line for line, b in zip(compiled, is_before, strict=True) if b is wanted] for wanted in (True, False)
    )
    return newest(before), newest(after)


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _mesh(line: dict) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in line["mesh"].items() if size > 1)


def _changes(line: dict) -> str:
    changes = line["changes"].items()
    return ", ".join(f"`{name}={value}`" for name, value in changes if not name.startswith(_MESH))


def _time_before(line: dict | None, products: float) -> str:
    """Returns time and share of a line of before. Some lack the products, which are those of the model then and now."""
    if line is None or line["estimated_seconds"] is None:
        return ""
    return f"{_ms(line)}, {products / line['estimated_seconds']:.1%}"


def _with_guess(line: dict, guess: float) -> str:
    """Returns a guess of the time that has no estimate, and the share of the estimate and the guess together."""
    return f"{guess * 1e3:.1f} ms, {line['products_seconds'] / (line['estimated_seconds'] + guess):.1%}"


def _ms(line: dict) -> str:
    return f"{line['estimated_seconds'] * 1e3:.1f}"


def _percent(line: dict) -> str:
    return f"{line['share']:.1%}"


def _gib(line: dict) -> str:
    return f"{line['bytes'] / 2**30:.2f}"


def tables(paths: Iterable[str], with_meshes: bool) -> str:
    """Returns the tables of the lines in files."""
    lines = read(paths)
    makers = [one_device, one_gpu, *([meshes] if with_meshes else []), plans]
    return "\n\n".join("\n".join(make(lines)) for make in makers)


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if argument != "--meshes"]
    print(tables(paths, "--meshes" in sys.argv))

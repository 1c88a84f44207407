"""Prints the lines of benchmarks.ahead as tables in Markdown, those of docs/estimates.md.

Command: python -m benchmarks.ahead_table FILE.jsonl

Of several lines for the same program, the last one counts. Lines whose commit starts with 01dfe16 or 2c282b4 are those
before the layout for TPUs and GPUs.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.models import CONFIGS

_BEFORE = ("01dfe16", "2c282b4")
_MESH = "mesh."


def read(path: str) -> list[dict]:
    """Returns the lines of training steps in a file."""
    lines = (json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["step"] == "train"]


def newest(lines: Iterable[dict]) -> dict[tuple, dict]:
    """Returns the last line of each program, by (config, topology, mesh, clips, changed fields without the mesh)."""
    return {
        (line["config"], line["topology"], _mesh(line), line["clips"], _changes(line)): line
        for line in sorted(lines, key=lambda line: CONFIGS.index(line["config"]))
    }


def one_device(lines: list[dict]) -> Iterator[str]:
    """Yields the table of one TPU v5e and one H100."""
    columns = ("config", "clips", "changes", "before: ms, share", "ms", "share", "GiB", "compiled in")
    yield from _head(*columns, "guess for kernels, share with it", "H100: GiB")
    before = newest(line for line in lines if line["commit"].startswith(_BEFORE))
    after = newest(line for line in lines if not line["commit"].startswith(_BEFORE))
    for key, line in after.items():
        config, topology, mesh, clips, changes = key
        if topology != "v5e:1x1" or line["estimated_seconds"] is None:
            continue
        old, gpu = before.get(key), after.get((config, "h100:1", mesh, clips, changes))
        guess = line["unestimated_guess_seconds"]
        row = (
            f"`{config}`",
            clips,
            changes or "",
            _before(old, line["products_seconds"]),
            _ms(line),
            _percent(line),
            _gib(line),
            f"{line['compile_seconds']:.0f} s",
            _with_guess(line, guess) if guess > 1e-3 else "",
            _gib(gpu) if gpu else "",
        )
        yield f"| {' | '.join(map(str, row))} |"


def meshes(lines: list[dict]) -> Iterator[str]:
    """Yields the table of several devices."""
    columns = ("topology", "config", "mesh", "clips on a shard", "GiB", "compiled in")
    yield from _head(*columns, "exchanged on a device in a step")
    found = newest(line for line in lines if not line["commit"].startswith(_BEFORE))
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


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _mesh(line: dict) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in line["mesh"].items() if size > 1)


def _changes(line: dict) -> str:
    changes = line["changes"].items()
    return ", ".join(f"`{name}={value}`" for name, value in changes if not name.startswith(_MESH))


def _before(line: dict | None, products: float) -> str:
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


if __name__ == "__main__":
    recorded = read(sys.argv[1])
    for table in (one_device, meshes):
        print("\n".join(table(recorded)), end="\n\n")

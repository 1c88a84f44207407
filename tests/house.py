"""The modules of the repository and what they import, read from their source."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vidformers", "input_pipeline")
FOLDERS = (*PACKAGES, "configs", "benchmarks", "tests")


def sources(*folders: str) -> list[Path]:
    """Returns the Python files below the folders, and `main.py` if no folder is given."""
    found = [path for folder in folders or FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return found if folders else [ROOT / "main.py", *found]


def name_of(path: Path) -> str:
    """Returns the dotted name of a module: that of its folder for `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Returns the modules of the two packages by name."""
    return {name_of(path): path for path in sources(*PACKAGES)}


def imports(source: str, known) -> list[tuple[str, str | None]]:
    """Returns (module, name) of every import in a source, within functions too.

    `name` is None where a module itself is imported: `import a.b`, or `from a import b` with a module `a.b` in `known`.
    """
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import of {node.module}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((inner, None) if inner in known else (node.module or "", alias.name))
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """Returns for every module of the two packages the modules of these packages that it imports."""
    known = modules()
    return {
        name: {target for target, _ in imports(path.read_text(encoding="utf-8"), known) if target in known} - {name}
        for name, path in known.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the nodes of one circle of a graph in order, or [] if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for target in sorted(graph.get(node, ())):
                if found := visit(target, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])

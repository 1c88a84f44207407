"""The layout of the repository: which package may import which, and how long a function and a file may be."""

import ast
import subprocess
import sys

import pytest
from house import PACKAGES, ROOT, arrows, circle, imports, modules, name_of, sources

# Packages of `vidformers` from the top to the bottom. A module imports from its own package and from those below it.
WINGS = ("inference", "training", "pretrained", "models", "attention", "layers", "parallel")
TOP = ("__init__", "errors", "progress")
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def wing(name: str) -> str:
    """Returns the second part of a module's name, '' for the front of `vidformers`."""
    return name.split(".")[1] if "." in name else ""


def goes_up(source: str, target: str) -> bool:
    """Whether an import within `vidformers` is against the order of the packages."""
    source, target = wing(source), wing(target)
    if source not in WINGS:  # the front and the modules beside it
        return source != "" and target in (*WINGS, "")
    return target == "" or target in WINGS and WINGS.index(target) < WINGS.index(source)


@pytest.mark.quick
def test_only_packages_and_three_modules_stand_at_the_top_of_vidformers():
    files = {path.stem for path in (ROOT / "vidformers").iterdir() if path.is_file()}
    assert files == {*TOP, "py"}  # py.typed
    assert {path.relative_to(ROOT / "vidformers").parts[0] for path in sources("vidformers")} == {
        *WINGS,
        *(f"{name}.py" for name in TOP),
    }


@pytest.mark.quick
def test_imports_go_down():
    against = [
        f"{source} imports {target}"
        for source, targets in arrows().items()
        for target in targets
        if source.startswith("vidformers") and target.startswith("vidformers") and goes_up(source, target)
    ]
    assert not against
    assert goes_up("vidformers.layers.mlp", "vidformers.models.vit") and goes_up("vidformers.layers.mlp", "vidformers")
    assert goes_up("vidformers.errors", "vidformers.parallel.mesh")
    assert not goes_up("vidformers.models.vit", "vidformers.layers.mlp")


@pytest.mark.quick
def test_the_pipeline_does_not_know_the_models():
    found = [
        f"{source} imports {target}"
        for source, path in modules().items()
        if source.startswith("input_pipeline")
        for target, _ in imports(path.read_text(encoding="utf-8"), modules())
        if target.split(".")[0] in ("vidformers", "jax", "flax")
    ]
    assert not found


@pytest.mark.quick
def test_no_import_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle(arrows())


@pytest.mark.quick
def test_no_module_imports_names_from_the_front_of_its_own_package():
    fronts = {name for name, path in modules().items() if path.stem == "__init__"}
    found = [
        f"{source}: from {target} import {name}"
        for source, path in modules().items()
        for target, name in imports(path.read_text(encoding="utf-8"), modules())
        if name is not None and target in fronts and (source == target or source.startswith(f"{target}."))
    ]
    assert not found


def test_importing_vidformers_needs_neither_grain_nor_av():
    script = "import sys, vidformers; print(*sorted({'grain', 'av', 'cv2', 'orbax', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.quick
def test_functions_and_files_are_short():
    long = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


@pytest.mark.quick
def test_the_tests_mirror_the_packages():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*WINGS, "input_pipeline", "commands", "goldens", "papers"}


@pytest.mark.quick
def test_the_references_share_no_module_with_the_library():
    """tests/papers holds forward passes in NumPy, from the equations of the papers."""
    found = {
        target.split(".")[0]
        for path in sources("tests/papers")
        for target, _ in imports(path.read_text(encoding="utf-8"), modules())
    }
    assert found == {"itertools", "math", "numpy", "papers"}


@pytest.mark.quick
def test_every_file_of_tests_has_a_quick_one():
    for path in sources("tests"):
        if path.stem.startswith("test_"):
            assert "pytest.mark.quick" in path.read_text(encoding="utf-8"), path.relative_to(ROOT)


@pytest.mark.quick
def test_names_of_modules_are_read():
    assert name_of(ROOT / "vidformers" / "models" / "vit.py") == "vidformers.models.vit"
    assert name_of(ROOT / "vidformers" / "models" / "__init__.py") == "vidformers.models"
    assert PACKAGES == ("vidformers", "input_pipeline")

"""README and pages: links lead somewhere, and commands have flags, fields and files that exist."""

import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from flax import nnx
from house import ROOT

from configs import help
from configs.base import base
from configs.loading import load
from vidformers import MODELS
from vidformers.attention import registry as schemes
from vidformers.attention.core import SelfAttention
from vidformers.attention.groups import group_numbers
from vidformers.attention.registry import SchemeEntry
from vidformers.attention.scheme import position
from vidformers.layers.tokens import Tokens
from vidformers.models import registry as models
from vidformers.models.summary import count_macs

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECTIONS = ("data", "model", "train", "optim", "eval", "mesh", "checkpoint", "init", "own")
EXAMPLES = {  # files that a reader of docs/adding.md creates
    "vidformers/attention/rows.py",
    "vidformers/attention/window.py",
    "vidformers/models/rows.py",
    "input_pipeline/sources/jsonl.py",
}
FILES = (".csv", ".json", ".safetensors", ".stablehlo")  # `train.csv` is a file, not a field
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
pytestmark = pytest.mark.quick


@cache
def known_fields() -> set[str]:
    """Returns `section.field` of every field that some model's config has."""
    configs = [base(name) for name in MODELS]
    return {f"{section}.{field}" for config in configs for section in SECTIONS for field in config[section]}


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Returns the words of every command of a page that starts with `python`, `make` or `pip`."""
    lines = [line for block in code_blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`(python [^`]+)`", text)
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(r"(python (main|-m)|make|pip install)\b", line) and "..." not in line
    ]


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_main(words: list[str]) -> None:
    """Checks the flags of `python main.py`, and that the fields they set are fields of the config."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words if word != "--help")
    config = load(given["config"]) if "config" in given else None
    for name in given:
        section, _, field = name.removeprefix("config.").partition(".")
        if name.startswith("config."):
            assert f"{section}.{field}" in known_fields() if config is None else field in config[section], name
        else:
            assert any(f"--{name}=" in page for page in help.MODES.values()) or name == "mode", name


def check_module(module: str, words: list[str]) -> None:
    """Checks that a module exists and that its source names the flags."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    source = Path(spec.origin).read_text(encoding="utf-8")
    for word in (word for word in words if word.startswith("--")):
        name = word.removeprefix("--").partition("=")[0]
        if name.startswith("config."):
            assert name.removeprefix("config.") in known_fields(), name
        else:
            keyword = name.replace("-", "_")  # benchmarks.arguments.parse takes the flags as keyword arguments
            assert re.search(rf"--{name}\b|\b{keyword}=|\"{keyword}\"", source), f"{module} has no --{name}"


def check(words: list[str]) -> None:
    if words[:2] == ["python", "main.py"]:
        check_main(words[2:])
    elif words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).exists(), words
    elif words[:2] == ["python", "-m"]:
        check_module(words[2], words[3:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), words
    else:
        for option, file in zip(words, words[1:], strict=False):
            assert option not in ("-r", "-c") or (ROOT / file).is_file(), file


@pages
def test_commands_have_flags_and_files_that_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        if words[2:3] != ["--config=configs/demo.py:rows"]:  # the example model of docs/adding.md
            check(words)


def test_a_wrong_command_is_found():
    for wrong in (
        "python main.py --config=configs/demo.py --config.model.widht=3",
        "python main.py --config=configs/demo.py --wrkdir=runs",
        "python -m input_pipeline.check --nothing=3",
        "python -m pytest tests/nothing.py",
        "make nothing",
        "pip install -r nothing.txt",
    ):
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))


@pages
def test_fields_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    section = f"(?:{'|'.join(SECTIONS)})"
    named = re.findall(rf"`({section}\.[a-z_0-9]+)[=`]|--config\.([\w.]+)=", text)
    fields = {field or flag for field, flag in named if not field.endswith(FILES)}
    assert fields - {"section.field"} <= known_fields(), fields - known_fields()


@pages
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.M)
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), f"{page.name} links to {target}"


def test_files_that_the_text_names_exist():
    for page in PAGES:
        for name in re.findall(
            r"`((?:vidformers|input_pipeline|configs|benchmarks|tests|docs|colab)/[\w./]+\.\w+)`",
            page.read_text(encoding="utf-8"),
        ):
            assert (ROOT / name).exists() or name in EXAMPLES, f"{page.name}: {name}"


def test_the_examples_of_adding_run(monkeypatch):
    text = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    scheme, window, model, _, source, *_ = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    for registry, rows in ((schemes, "SCHEMES"), (models, "MODELS")):
        monkeypatch.setattr(registry, rows, dict(getattr(registry, rows)))
    modules = [ModuleType(f"example_{name}") for name in ("scheme", "model", "source", "window")]
    monkeypatch.setitem(sys.modules, "vidformers.attention.rows", modules[0])
    for module, code in zip(modules, (scheme, model, source, window), strict=True):
        exec(code, module.__dict__)
    models.register("rows", modules[1].rows)
    tiny = dict(width=8, heads=2, depth=1, patch_size=4, frames=2, image_size=8, num_classes=3)
    clips = np.zeros((1, 2, 8, 8, 3), np.uint8)
    assert nnx.eval_shape(lambda: models.build("rows", rngs=nnx.Rngs(0), **tiny)(clips)).shape == (1, 3)
    assert all(hasattr(modules[2], name) for name in ("TRAIN", "VAL", "read", "classes"))
    for name in ("rows", "window"):
        assert_keys_are_expected(schemes.SCHEMES[name])
    macs = [attention_macs(schemes.SCHEMES["window"].make(), frames) for frames in (8, 16, 32)]
    assert macs == [macs[0], 2 * macs[0], 4 * macs[0]]


def assert_keys_are_expected(entry: SchemeEntry) -> None:
    """Asserts that every patch gathers and sees exactly the expected keys."""
    scheme, grid = entry.make(), entry.grid
    query = group_numbers(scheme, grid)
    key = scheme.neighbourhood(query, grid)
    query, key = np.broadcast_arrays(query[..., None], key[:, :, None])
    seen = (query > 0) & (key > 0) & scheme.visible(position(query, grid), position(key, grid))
    found = {(int(q) - 1, int(k) - 1) for q, k in zip(query[seen], key[seen], strict=True)}
    assert found == {
        (int(np.ravel_multi_index(patch, grid)), int(np.ravel_multi_index(other, grid)))
        for patch in np.ndindex(grid)
        for other in entry.expected_keys(grid, *patch)
    }


def attention_macs(scheme, frames: int) -> int:
    """Returns the multiply-adds of a sublayer on a clip of this many frames of 2 x 2 patches."""
    layer = nnx.eval_shape(lambda: SelfAttention(scheme, 8, 2, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(layer)
    grid = (frames, 2, 2)
    tokens = Tokens(
        jax.ShapeDtypeStruct((1, frames, 4, 8), "float32"), jax.ShapeDtypeStruct((1, 0, 8), "float32"), grid
    )
    return count_macs(lambda state, tokens: nnx.merge(graph, state)(tokens), state, tokens).total


def test_the_readme_is_a_front_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    assert (ROOT / "docs" / "demo.gif").stat().st_size < 1e6

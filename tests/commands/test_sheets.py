"""Every experiment sheet, with every override its docstring gives, is of a model that exists."""

import importlib
import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from flax import nnx

from configs.base import OWN, base
from configs.sheet import SheetError, load, override
from vidformers import MODELS, ConfigError, build
from vidformers.models.config import ModelConfig
from vidformers.models.registry import DEFAULTS
from vidformers.models.summary import summarise

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py") if "def get_config" in path.read_text())


def config(name, *arguments):
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_at_full_size(name):
    for argument in [()] + [(model,) for model in OWN if name == "demo"]:
        assert summarise(partial(build, **config(name, *argument).model.to_dict())).params > 0


@pytest.mark.parametrize("name", MODELS)
def test_config_fields_are_exactly_those_of_the_model(name):
    assert set(OWN) == set(MODELS)
    own = {key: value for key, value in (MODELS[name].__kwdefaults__ or {}).items() if key != "rngs"}
    fresh = base(name).model  # a placeholder reads as None
    own |= DEFAULTS.get(name, {})
    assert OWN[name].keys() == own.keys() and {key: fresh[key] for key in own} == own
    shared = {field.name for field in fields(ModelConfig)} - {"masked"}  # for tests alone
    assert set(fresh) == {"name"} | shared | own.keys()


@pytest.mark.parametrize(
    "name, field",
    [
        ("vit", "block_size"),
        ("joint", "temporal_fc"),
        ("mevit", "blocksize"),
        ("timesformer", "order"),
        ("vit", "compute"),
    ],
)
def test_a_foreign_field_is_refused_by_name(name, field):
    with pytest.raises(ConfigError, match=rf"model\.{field}\b.*{name}"):
        build(name, num_classes=5, rngs=nnx.Rngs(0), **{field: 1})


def ablations():
    """(label, overrides) of the rows that the docstring of configs/mevit_b16.py gives."""
    baseline = ()
    for line in importlib.import_module("configs.mevit_b16").__doc__.split("as overrides:")[1].splitlines():
        row = [(path, values.split("|")) for path, values in re.findall(r"--config\.(\S+?)=(\S+)", line)]
        if "baseline of" in line:
            baseline = tuple((path, values[0]) for path, values in row)
        for i in range(max((len(values) for _, values in row), default=0)):
            chosen = tuple((path, values[i % len(values)]) for path, values in row)
            if "the baseline and" in line:
                chosen = baseline + chosen
            if re.match(r"\s+\d+\+\d", line):  # Table 2: as many motion blocks as blocks
                chosen += (("model.motion_blocks", dict(chosen)["model.depth"]),)
            yield chosen


@pytest.mark.parametrize("overrides", list(ablations()), ids=lambda row: " ".join("=".join(x) for x in row))
def test_every_row_of_the_ablations_builds(overrides):
    sheet = config("mevit_b16")
    for path, text in overrides:
        override(sheet, path, text)
    stages = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **sheet.model.to_dict())).encoder.stages
    depth, motion, late = (sheet.model[field] for field in ("depth", "motion_blocks", "class_blocks"))
    assert [stage.depth for stage in stages] == [n for n in (depth - motion, motion, late) if n]


def variants(sheet):
    """(path, text) overrides of each variant that the docstring of a sheet gives; values of a line go together."""
    text = importlib.import_module(f"configs.{sheet}").__doc__
    text = re.sub(r"\n +(?=--config)", " ", text)  # a line may be continued
    for line in text.splitlines():
        row = [
            (path, values.strip('"').split("|"))
            for path, values in re.findall(r'--config\.(\S+?)=("\(.*?\)"|\S+)', line)
        ]
        if not line.startswith("Command:"):
            for i in range(max((len(values) for _, values in row), default=0)):
                yield tuple((path, values[i % len(values)]) for path, values in row)


DATASETS = [
    sheet
    for sheet in CONFIGS
    if "configs.datasets" in Path(f"configs/{sheet}.py").read_text() or sheet.startswith("kinetics")
]


@pytest.mark.parametrize("data", DATASETS)
def test_sheets_of_data_sets_take_every_model(data):
    for sheet in sorted(set(CONFIGS) - set(DATASETS) - {"demo"}):
        chosen = load(f"configs/{data}.py:{sheet}")
        assert chosen.model.to_dict() == config(sheet).model.to_dict() | dict(num_classes=chosen.data.num_classes)
        assert chosen.data.source != "csv" and chosen.data.num_classes == chosen.model.num_classes
    with pytest.raises(SheetError, match="one of cvt_13, .*, not 'demo'"):
        load(f"configs/{data}.py:demo")


VARIANTS = [(sheet, row) for sheet in CONFIGS if sheet not in ("demo", "mevit_b16") for row in variants(sheet)]


@pytest.mark.parametrize("sheet, row", VARIANTS, ids=lambda x: x if isinstance(x, str) else " ".join(map("=".join, x)))
def test_every_override_a_sheet_gives_builds(sheet, row):
    chosen = config(sheet)
    for path, text in row:
        override(chosen, path, text)
    assert nnx.eval_shape(lambda: build(**chosen.model.to_dict(), rngs=nnx.Rngs(0)))


def test_the_sheets_list_the_ablations_of_their_papers():
    count = {sheet: sum(name == sheet for name, _ in VARIANTS) for sheet in CONFIGS}
    assert count["havit_s16"] == 3 + 3 + 2 + 3 and count["msca_b16"] == 5 + 7 + 4 + 6 + 7 + 1
    assert count["stat_t16"] == 3 + 4 + 2 + 4 + 2 + 1


def test_the_ablations_are_all_there():
    assert len(list(ablations())) == 1 + 5 + 4 + 5 + 1

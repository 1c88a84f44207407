"""Every value of every recipe names its source, and is the value that the source has.

The expected values are in tests/recipes.py.
"""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from recipes import DATA_SETS, EXPECTED, SSV2

from configs import sources
from configs.base import base
from configs.sources import cite, guess

# Fields of a run, of which no recipe has a value.
OF_THE_RUN = {"train.eval_every_epochs", "model.frames_at_once"}
SHARED = {"model.frames", "model.image_size", "model.num_classes"}  # with the section `data`
# Fields that every recipe has, even where the value is the default.
OF_EVERY_RECIPE = {
    *("data.frames", "data.sampling", "data.size", "data.crop", "data.resize", "data.flip"),
    *("model.size", "model.mean", "model.std", "model.dropout", "model.drop_path"),
    *("train.total_epochs", "train.batch_size", "train.label_smoothing"),
    *("optim.name", "optim.lr", "optim.weight_decay", "optim.decay", "optim.schedule", "optim.clip_norm"),
    *("eval.clips", "eval.crops"),
}


def config_of(name):
    file, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(*[variant] * bool(variant))


def differences(config, default):
    """Yields the path and the value of each field that differs from the default config."""
    for section, fields in config.items():
        if isinstance(fields, ConfigDict):
            for field, value in fields.items():
                if value != default[section][field]:
                    yield f"{section}.{field}", value


@pytest.mark.quick
@pytest.mark.parametrize("name", EXPECTED)
def test_every_value_names_its_source_and_is_the_value_of_the_source(name):
    config = config_of(name)
    recorded, (expected, guesses) = sources.sources(config), EXPECTED[name]
    unnamed = (
        {field for field, _ in differences(config, base(config.model.name))} - recorded.keys() - OF_THE_RUN - SHARED
    )
    assert not unnamed, "set without a source"
    assert not OF_EVERY_RECIPE - recorded.keys()
    for field, source in recorded.items():
        section, _, key = field.partition(".")
        assert config[section][key] == source.value, f"{field} was changed without a source"
        assert source.text.strip() and (source.open is None or source.open.strip())
    assert {field: source.value for field, source in recorded.items()} == expected
    assert {field for field, source in recorded.items() if source.open is not None} == guesses


@pytest.mark.quick
def test_every_recipe_is_held_to_its_sources():
    recipes = {path.stem for path in Path("configs").glob("*_*.py") if path.stem != "__init__"}
    assert {name.partition(":")[0] for name in EXPECTED} == recipes


@pytest.mark.quick
@pytest.mark.parametrize("data", DATA_SETS)
def test_a_data_set_names_the_sources_of_what_it_changes(data):
    for name in EXPECTED:
        config, model = importlib.import_module(f"configs.{data}").get_config(name), config_of(name)
        recorded, before = sources.sources(config), sources.sources(model)
        changed = dict(differences(config, model))
        assert not changed.keys() - recorded.keys() - SHARED, name
        for field, source in recorded.items():
            section, _, key = field.partition(".")
            assert config[section][key] == source.value, f"{name}: {field} was changed without a source"
        own = {field: source for field, source in recorded.items() if source != before.get(field)}
        starts = [start for start in SSV2 if name.startswith(start)]  # the last fits every name
        expected, guesses = SSV2[starts[0]] if data == "ssv2" else ({}, set())
        assert own.pop("data.root").value.startswith("data/")
        assert {field: source.value for field, source in own.items()} == expected | DATA_SETS[data], name
        assert {field for field, source in own.items() if source.open is not None} == guesses, name


@pytest.mark.quick
def test_a_source_is_recorded_beside_the_config_and_not_in_it():
    config = base("vit")
    before = config.to_dict()
    cite(config, "Paper, section 1", optim=dict(lr=before["optim"]["lr"]))
    guess(config, "the paper is silent", "zero", model=dict(dropout=0.0))
    assert config.to_dict() == before
    assert sources.table(config).splitlines() == [
        "model.dropout  0.0      guess: the paper is silent. Here: zero",
        "optim.lr       0.00025  Paper, section 1",
    ]
    with pytest.raises(KeyError, match="learning_rate"):
        cite(config, "Paper", optim=dict(learning_rate=0.1))


@pytest.mark.quick
def test_the_command_prints_the_sources(capsys):
    flags = ["--config=configs/msca_b16.py:released", "--config.optim.lr=0.2"]
    assert sources.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data.short_side        (224, 329)  ") for line in lines)
    assert any("0.2              a flag; 0.1 is from VideoNetworks" in line for line in lines)
    assert sources.main(["--config=configs/msca_b16.py:new"]) == 2
    assert "must be paper or released, not 'new'" in capsys.readouterr().err

"""Configs: every config and every override in its docstring builds a model, and defaults agree."""

import importlib
import inspect
import re
from functools import partial
from pathlib import Path

import pytest
from flax import nnx

from configs.base import base
from configs.loading import FlagError, load, override
from input_pipeline import Pipeline
from vidformers import MODELS, ConfigError, build
from vidformers.models.config import ModelConfig
from vidformers.models.registry import register
from vidformers.models.summary import summarise
from vidformers.models.vit import vit
from vidformers.parallel.mesh import make_mesh
from vidformers.pretrained import Init
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.config import OwnConfig, TrainConfig
from vidformers.training.evaluate import EvalProtocol
from vidformers.training.optim import OptimConfig

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py") if "def get_config" in path.read_text())
DATASETS = [
    name
    for name in CONFIGS
    if "configs.datasets" in Path(f"configs/{name}.py").read_text() or name.startswith("kinetics")
]
# The defaults of configs/base.py that differ from those of the library: values of a full training run.
DIFFERENT = {("data", "stride"): 32, ("data", "workers"): 4, ("model", "dtype"): "bfloat16"}


# Parameters, and G multiply-adds of a view: all, and those with weights.
COSTS = {
    "vit_b16": (86_106_256, 140.5, 134.8),
    "timesformer_b16": (121_566_352, 195.8, None),
    "joint_b16": (86_112_400, 179.6, None),
    "vivit_b16": (88_954_000, 451.5, None),
    "mevit_b16": (102_659_728, 156.5, 150.8),
    "havit_s16": (34_541_584, None, None),
    "msca_b16": (86_106_256, 140.5, 134.8),
    "tokenshift_b16": (86_106_256, 140.5, 134.8),
    "vtn_vit_b16": (113_502_352, None, None),
    "stat_t16": (44_058_928, 58.895, None),
    "stat_t32": (None, 119.57, None),
    "stat_t64": (None, 243.34, None),
}


# Something-Something v2: sampling, frames, test clips x crops. TimeSformer: timesformer/datasets/ssv2.py and
# configs/SSv2/TimeSformer_divST_8_224.yaml of its repository. ViViT: its config of something_something_v2
# in Scenic. MEViT: section 4.1. HaViT: section 4.2. STAT: its implementation details. The others are a guess.
SSV2 = {
    "timesformer_b16": ("timesformer_ssv2", 8, "1x3"),
    "joint_b16": ("timesformer_ssv2", 8, "1x3"),
    "vivit_b16": ("dmvr", 32, "4x3"),
    "mevit_b16": ("uniform", 8, "1x3"),
    "havit_b16": ("uniform", 8, "4x3"),
    "stat_t16": ("uniform", 16, "1x3"),
    "stat_t64": ("uniform", 64, "1x3"),
    "msca_b16": ("uniform", 8, "10x3"),
    "msca_b16:released": ("uniform", 8, "10x3"),
}


def config(name, *arguments, overrides=()):
    config = importlib.import_module(f"configs.{name}").get_config(*arguments)
    for path, text in overrides:
        override(config, path, text)
    return config


def shape(model):
    """The model of a section, by shape alone."""
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **model.to_dict()))


def distinct(name, rows):
    """Yields (overrides, section model) of the rows that change the model of a config, each model once."""
    seen = [config(name).model.to_dict()]
    for row in rows:
        model = config(name, overrides=row).model
        if model.to_dict() not in seen:
            seen.append(model.to_dict())
            yield row, model


@pytest.mark.parametrize("name", [*sorted(set(CONFIGS) - set(DATASETS)), *(f"demo:{model}" for model in MODELS)])
def test_every_config_builds_and_runs_at_full_size(name):
    file, _, model = name.partition(":")
    summary = summarise(partial(build, **config(file, *[model] * bool(model)).model.to_dict()))
    assert summary.params == sum(size for _, size in summary.modules) > 0
    params, macs, linear = COSTS.get(name, (None, None, None))
    assert params in (None, summary.params)
    rounding = 0.006 if file.startswith("stat") else 0.05
    assert macs is None or summary.macs_per_view / 1e9 == pytest.approx(macs, abs=rounding)
    assert linear is None or summary.macs_per_view_linear / 1e9 == pytest.approx(linear, abs=0.05)
    documented = re.search(r"([\d,]{9,}) parameters[.,]", importlib.import_module(f"configs.{file}").__doc__)
    assert documented is None or int(documented[1].replace(",", "")) == summary.params


@pytest.mark.quick
@pytest.mark.parametrize("name", SSV2)
def test_clips_and_views_of_something_something(name):
    chosen = load(f"configs/ssv2.py:{name}")
    data, views = Pipeline(**chosen.data.to_dict()), chosen.eval
    assert (data.sampling, data.frames, f"{views.clips}x{views.crops}") == SSV2[name]
    assert data.stride == 1 or name != "vivit_b16"


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_the_section_model_holds_the_fields_of_the_model(name):
    """Written apart from `configs.base`: the keyword arguments of the function, and the shared fields."""
    function, traits = MODELS[name].function, MODELS[name].traits
    own = {key: value for key, value in (function.__kwdefaults__ or {}).items() if key != "rngs"}
    section = base(name).model  # a placeholder reads as None
    assert {key: section[key] for key in own} == own
    assert {key: section[key] for key in traits.defaults} == traits.defaults
    shared = set(ModelConfig.__dataclass_fields__) - {"masked"} | {"size"}
    assert set(section) == {"name"} | shared | own.keys()
    assert section.get_type("width") is int and section.width is None


@pytest.mark.quick
@pytest.mark.parametrize(
    "section, function",
    [
        ("data", Pipeline),
        ("model", ModelConfig),
        ("init", Init),
        ("train", TrainConfig),
        ("optim", OptimConfig),
        ("eval", EvalProtocol),
        ("mesh", make_mesh),
        ("checkpoint", Checkpoints),
        ("own", OwnConfig),
    ],
)
def test_defaults_of_a_config_are_those_of_the_library(section, function):
    fields = base("vit")[section]
    parameters = inspect.signature(function).parameters
    unknown = set(fields) - set(parameters)
    assert unknown == ({"name", "size", "frame_average"} if section == "model" else set())  # `frame_average` of `vit`
    for name in set(fields) & set(parameters):
        default = parameters[name].default
        if default is not inspect.Parameter.empty:
            assert fields[name] == DIFFERENT.get((section, name), default), name


@pytest.mark.quick
def test_a_model_is_registered_once_and_without_shared_fields():
    with pytest.raises(ValueError, match="'vit' is registered twice"):
        register("vit", vit)

    def wide(config, *, width=3, rngs): ...

    with pytest.raises(ValueError, match=r"\['width'\] of the model 'wide'"):
        register("wide", wide)
    assert "wide" not in MODELS


@pytest.mark.parametrize(
    "name, field",
    [
        ("vit", "block_size"),
        ("joint", "temporal_fc"),
        ("mevit", "blocksize"),
        ("timesformer", "order"),
        ("vit", "sublayer_options"),
    ],
)
def test_a_foreign_field_is_refused_by_name(name, field):
    with pytest.raises(ConfigError, match=rf"model\.{field}\b.*{name}"):
        build(name, num_classes=5, rngs=nnx.Rngs(0), **{field: 1})


def variants(name):
    """Yields (path, text) overrides of each variant in the docstring of a config; values of a line go together."""
    text = importlib.import_module(f"configs.{name}").__doc__
    text = re.sub(r"(?: \\)?\n +(?=--config)", " ", text)  # a line may be continued
    for line in text.splitlines():
        row = [
            (path, values.strip('"').split("|"))
            for path, values in re.findall(r'--config\.(\S+?)=("\(.*?\)"|\S+)', line)
        ]
        if "python " not in line:
            for i in range(max((len(values) for _, values in row), default=0)):
                yield tuple((path, values[i % len(values)]) for path, values in row)


@pytest.mark.parametrize("data", DATASETS)
def test_configs_of_data_sets_take_every_config_of_a_model(data):
    for name in sorted(set(CONFIGS) - set(DATASETS) - {"demo", "own"}):
        chosen = load(f"configs/{data}.py:{name}")
        assert chosen.model.to_dict() == config(name).model.to_dict() | dict(num_classes=chosen.data.num_classes)
        assert chosen.data.source != "csv" and chosen.data.num_classes == chosen.model.num_classes
    with pytest.raises(FlagError, match="one of cvt_13, .*, not 'demo'"):
        load(f"configs/{data}.py:demo")


VARIANTS = {name: list(variants(name)) for name in CONFIGS if name != "demo"}


@pytest.mark.parametrize("name", [name for name, rows in VARIANTS.items() if rows])
def test_every_override_in_the_docstring_of_a_config_builds(name):
    for row, model in distinct(name, VARIANTS[name]):
        assert shape(model), row

"""Fields that follow data.size, and a run that is continued keeps its own."""

import json

import pytest
from command import one_sentence

import main
from configs.loading import derived, load, override, read_flags
from input_pipeline import Pipeline
from vidformers import ConfigError
from vidformers.training.workdir import differences_from_stored_run


def data(*flags, config="configs/mevit_b16.py"):
    return read_flags([f"--config={config}", *flags], {})[0].data


@pytest.mark.quick
@pytest.mark.parametrize(
    "config, size, short, test",
    [
        ("configs/mevit_b16.py", 224, (256, 320), None),
        ("configs/mevit_b16.py", 64, (73, 91), None),
        ("configs/swin_t.py", 112, (128, 160), None),
        ("configs/tokenshift_b16.py", 112, (112, 164), None),
        ("configs/stat_t16.py", 112, (128, 160), 128),
        ("configs/demo.py", 64, (68, 80), 72),
    ],
)
def test_the_shorter_side_follows_the_size(config, size, short, test):
    for flag in ("data.size", "model.image_size"):
        section = data(f"--config.{flag}={size}", config=config)
        assert (section.size, tuple(section.short_side), section.test_short_side) == (size, short, test)


@pytest.mark.quick
@pytest.mark.parametrize("size", ["9" * 400, "-1", "0", "20000"])
def test_a_size_that_is_refused_later_derives_nothing(size):
    for config in ("configs/demo.py", "configs/mevit_b16.py"):
        assert data(f"--config.data.size={size}", config=config).size == int(size)


@pytest.mark.quick
def test_a_shorter_side_that_is_given_is_kept():
    for flags in (["data.size=64", "data.short_side=(64,80)"], ["data.short_side=(64,80)", "data.size=64"]):
        config, _ = read_flags(["--config=configs/mevit_b16.py", *(f"--config.{flag}" for flag in flags)], {})
        assert config.data.short_side == (64, 80) and derived(config) == set()
    assert data("--config.data.size=64", "--config.data.size=224").short_side == (256, 320)


@pytest.mark.quick
def test_the_pipeline_has_the_same_default():
    for size in (17, 64, 224):
        config = load("configs/swin_t.py")
        override(config, "data.size", str(size))
        followed = Pipeline(**config.data.to_dict()).short_side
        assert followed == Pipeline(num_classes=2, frames=2, size=size).short_side
    assert Pipeline(num_classes=2, frames=2, size=224).short_side == (256, 320)


def write_run(folder, section):
    (folder / "run.json").write_text(json.dumps({"config": {"model": {}, "data": section}, "data": {}}))


@pytest.mark.quick
@pytest.mark.parametrize("section", [{}, {"size": 224, "short_side": [9, 9]}, None])
def test_only_a_run_with_the_same_size_keeps_its_own(section, tmp_path):
    if section is not None:
        write_run(tmp_path, section)
    command = ["main.py", "--config=configs/mevit_b16.py", f"--workdir={tmp_path}", "--config.data.size=64"]
    assert main.parse(command).config["data"]["short_side"] == (73, 91)


@pytest.mark.quick
@pytest.mark.parametrize("mode", ["train", "eval", "summary", "plan"])
def test_a_damaged_run_is_refused_where_its_fields_are_kept(mode, tmp_path, capsys):
    """No mode goes on with other values than those of the run."""
    for content in (
        "{",
        "[]",
        '{"config": {"data": 3}}',
        '{"config": {"model": {}, "data": {}}, "data": {}, "checksum": 1}',
    ):
        (tmp_path / "run.json").write_text(content)
        assert main.main(["main.py", "--config=configs/mevit_b16.py", f"--workdir={tmp_path}", f"--mode={mode}"]) == 2
        assert f"{tmp_path}/run.json is damaged: it " in one_sentence(capsys.readouterr().err)


@pytest.mark.quick
def test_a_run_of_before_keeps_its_shorter_side(tmp_path):
    stored = {"size": 64, "short_side": [256, 320], "test_short_side": 256}
    write_run(tmp_path, stored)
    for config, test in (("mevit_b16", None), ("stat_t16", 256)):
        command = ["main.py", f"--config=configs/{config}.py", f"--workdir={tmp_path}", "--config.data.size=64"]
        section = main.parse(command).config["data"]
        assert section["short_side"] == (256, 320) and section["test_short_side"] == test
    given = main.parse([*command, "--config.data.short_side=(70,80)"]).config["data"]
    assert given["short_side"] == (70, 80)


@pytest.mark.quick
def test_a_run_of_before_is_not_refused(tmp_path):
    command = ["main.py", "--config=configs/mevit_b16.py", f"--workdir={tmp_path}", "--config.data.size=64"]
    config, facts = main.parse(command).config, {"train": "digest", "train_list": "train.csv"}
    stored = config | {"data": config["data"] | {"short_side": (256, 320)}}
    (tmp_path / "run.json").write_text(json.dumps({"config": stored, "data": facts}))
    with pytest.raises(ConfigError, match="data.short_side"):
        differences_from_stored_run(tmp_path, {"config": config, "data": facts})
    assert differences_from_stored_run(tmp_path, {"config": main.parse(command).config, "data": facts}) == []

"""The folder of a run is enough: no mode needs --config or an override that the training had."""

import json

import pytest
from command import ROOT, arguments

import main
from configs.loading import FlagError
from vidformers import ConfigError
from vidformers.parallel.mesh import fits_devices
from vidformers.training.workdir import differences_from_stored_run, write_run_json

FACTS = {"train": "digest", "train_list": "train.csv", "classes": ["a", "b"]}
FIELDS = {"optim.ema_decay": 0.5, "data.flip_swaps": "((0, 1), (6, 7))", "init.weights": "w.npz"}
MODES = ("train", "eval", "predict", "explain", "export", "summary", "plan")
NEEDS = {"predict": ["--video=v"], "explain": ["--video=v", "--out=o"], "export": ["--out=o"]}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the folder of a run that differs from its config in many fields, as `run.json` alone."""
    folder = tmp_path_factory.mktemp("run")
    config = main.parse(["main.py", *arguments("videos", folder, FIELDS)]).config
    write_run_json(folder, {"config": config, "data": FACTS})
    return folder


def parse(workdir, *flags, mode="train", config=None):
    file = [] if config is None else [f"--config={ROOT}/configs/{config}"]
    return main.parse(["main.py", f"--workdir={workdir}", f"--mode={mode}", *file, *flags, *NEEDS.get(mode, [])])


@pytest.mark.quick
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_takes_the_config_of_the_run(mode, workdir):
    """Also with the values of Python that JSON lacks, and with types by which a field can be overridden."""
    expected = main.parse(["main.py", *arguments("videos", workdir / "none", FIELDS)]).config
    command = parse(workdir, mode=mode)
    assert (command.config, command.given, command.notes, command.mode) == (expected, set(), (), mode)
    assert main.parse(["main.py", f"--workdir={workdir}"]).mode == "train"
    assert not differences_from_stored_run(workdir, {"config": command.config, "data": FACTS})


@pytest.mark.quick
def test_fields_override_those_of_the_run(workdir):
    command = parse(workdir, "--config.optim.lr=1e-5", "--config.data.size=32", "--config.init.weights=none")
    assert command.given == {"optim.lr", "data.size", "init.weights"} and command.config["optim"]["lr"] == 1e-5
    # Other fields that follow data.size follow it here, too.
    assert command.config["model"]["image_size"] == 32 and command.config["data"]["short_side"] == (36, 40)
    assert parse(workdir, "--config.optim.lr", "2e-5").config["optim"]["lr"] == 2e-5
    for wrong, sentence in (("--config.optim.rl=1", "did you mean"), ("--config.data.size=big", "not of type int")):
        with pytest.raises(FlagError, match=sentence):
            parse(workdir, wrong)


@pytest.mark.quick
@pytest.mark.parametrize("mode", ["eval", "predict", "explain", "export"])
def test_a_file_beside_a_run_must_have_its_model(mode, workdir):
    same = [f for f in arguments("elsewhere", workdir, {"eval.clips": 1}, mode=mode) if f.startswith("--config.")]
    command = parse(workdir, *same, mode=mode, config="demo.py:vit")
    expected = parse(workdir, mode=mode).config
    assert command.config["data"] == expected["data"] | {"root": "elsewhere"}
    assert command.config["eval"] == expected["eval"] | {"clips": 1}
    assert command.notes == (
        "Fields that are given in place of those of the run: data.root is 'elsewhere' (was 'videos'), eval.clips is 1 "
        "(was 2).",
    )
    for model, field, words in (
        ("mevit", "data.size=16", "a run with model.name='vit', not 'mevit'. Leave out --config"),
        ("vit", "model.mean=(0.1,0.1,0.1)", r"model.mean=\[0.5, 0.5, 0.5\], not \[0.1, 0.1, 0.1\]"),
        ("vit", "data.frames=8", "data.frames=4, not 8"),
        ("vit", "data.num_classes=3", "data.num_classes=10, not 3"),
        ("vit", "model.drop_path=0.5", "model.drop_path=0.0, not 0.5"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(workdir, *same, f"--config.{field}", mode=mode, config=f"demo.py:{model}")
    # How the model is computed may differ.
    free = ["--config.model.remat=full", "--config.model.dtype=bfloat16", "--config.model.backend=einsum"]
    model = parse(workdir, *same, *free, mode=mode, config="demo.py:vit").config["model"]
    assert (model["remat"], model["dtype"], model["backend"]) == ("full", "bfloat16", "einsum")


@pytest.mark.quick
def test_what_a_file_has_otherwise_is_said(workdir):
    same = [f for f in arguments("videos", workdir) if f.startswith("--config.model.") or "data.size" in f]
    command = parse(workdir, *same, "--config.data.frames=4", mode="eval", config="demo.py:vit")
    assert command.config["data"]["root"] == "videos" and command.config["eval"]["clips"] == 2
    (note,) = command.notes
    assert "demo.py:vit has others: data.balance=0.5, data.classes=None, " in note and " more." in note


@pytest.mark.quick
def test_a_run_of_an_earlier_version_has_the_defaults_of_its_time(workdir, tmp_path):
    config = parse(workdir).config
    old = {name: dict(config[name]) for name in ("model", "data", "train", "optim")} | {"seed": 3}
    for section, field in (("data", "stride"), ("optim", "in_backward"), ("train", "mixup")):
        del old[section][field]
    write_run_json(tmp_path, {"config": old, "data": FACTS})
    now = parse(tmp_path).config
    assert (now["seed"], now["data"]["stride"], now["optim"]["in_backward"], now["train"]["mixup"]) == (3, 1, False, 0)
    assert now["mesh"] == {"data": -1, "fsdp": 1, "context": 1}


@pytest.mark.quick
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config: config["data"].update(nonsense=1), "run.json has the field nonsense, which this version lacks"),
        (lambda config: config.update(nonsense={"a": 1}), "run.json has a section nonsense, which this version lacks"),
        (lambda config: config["model"].update(name="nonsense"), "run.json names no model that this version has"),
        (lambda config: config["data"].update(size="big"), "run.json has size='big'"),
    ],
)
def test_a_run_of_another_version_is_refused(change, words, workdir, tmp_path):
    config = json.loads(json.dumps(parse(workdir).config))
    change(config)
    write_run_json(tmp_path, {"config": config, "data": FACTS})
    with pytest.raises(FlagError, match=words):
        parse(tmp_path)


@pytest.mark.quick
def test_without_a_run_a_file_is_needed(tmp_path):
    for flags, words in (([f"--workdir={tmp_path}"], "holds no run: there is no"), (["--mode=train"], "--config=FILE")):
        with pytest.raises(FlagError, match=words):
            main.parse(["main.py", *flags])


@pytest.mark.quick
def test_a_run_of_other_devices_is_read_on_those_here(workdir, tmp_path):
    """The tests have eight devices."""
    config = parse(workdir).config
    config["mesh"], config["model"]["backend"] = {"data": 2, "fsdp": 8, "context": 1}, "pallas"
    write_run_json(tmp_path, {"config": config, "data": FACTS})
    for mode in ("eval", "predict", "explain", "export"):
        command = parse(tmp_path, mode=mode)
        now, notes = main._on_these_devices(command)
        assert now["mesh"] == {"data": -1, "fsdp": 1, "context": 1} and now["model"]["backend"] == "auto"
        assert any("mesh.fsdp=8" in note for note in notes)
        given = parse(tmp_path, "--config.mesh.fsdp=16", mode=mode)
        assert main._on_these_devices(given)[0]["mesh"]["fsdp"] == 16
    assert parse(tmp_path).config["model"]["backend"] == "pallas"
    assert fits_devices(data=2, fsdp=2, context=2) and fits_devices(data=-1, fsdp=8)
    assert not fits_devices(data=-1, fsdp=16) and not fits_devices(data=1, fsdp=2)

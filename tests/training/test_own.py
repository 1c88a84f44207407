"""Training on own videos: what is derived from the data, a measured step and the time that is given."""

import json
import re

import pytest
import safetensors.numpy
from command import ROOT
from weights import tiny_vit

import main
from configs.loading import given, load, override_all
from configs.runs import with_own_classes
from input_pipeline import DataError
from vidformers import MODELS, ConfigError
from vidformers.models.config import SIZES
from vidformers.training.own import derive, measure
from vidformers.training.own.budget import Costs, length, shortest
from vidformers.training.own.measure import Decoding, StepTime
from vidformers.training.own.sizes import candidates
from vidformers.training.sections import check_sections
from vidformers.training.setup import load_weights, set_up
from vidformers.training.workdir import write_run_json

CLASSES = ("clap", "turn left", "turn right")
TINY = {
    "data.size": 32, "data.frames": 4, "data.workers": 0, "model.width": 16, "model.heads": 2, "model.depth": 1,
    "model.unroll": 1, "train.total_steps": 4, "train.batch_size": 8,
}  # fmt: skip


def training_macs(model, clips):
    """Returns about the multiply-adds of a ViT, in place of tracing the model."""
    size = SIZES[model["size"]]._asdict() | {name: model[name] for name in ("width", "depth") if model[name]}
    tokens = model["frames"] * (model["image_size"] / model["patch_size"]) ** 2 / model.get("patch_frames", 1)
    return 3 * clips * 12 * size["depth"] * size["width"] ** 2 * tokens


class Machine:
    """A machine that is not measured: the times follow from these figures, and its clock from the times.

    Args:
        rate: multiply-adds per second of a training step.
        largest: multiply-adds of the largest step that fits in memory.
        cores: its cores.
        is_cpu: whether they also train.
    """

    def __init__(self, monkeypatch, rate=2e10, largest=1e16, cores=2, is_cpu=True):
        self.rate, self.largest, self.cores, self.is_cpu = rate, largest, cores, is_cpu
        self.decoding, self.seconds = Decoding(0.01, 0.002), 5.0
        monkeypatch.setattr(measure, "training_macs", training_macs)
        monkeypatch.setattr(measure, "is_cpu", lambda: is_cpu)
        monkeypatch.setattr(measure, "num_cores", lambda: cores)
        monkeypatch.setattr(measure, "measure_decoding", lambda *_: self.decoding)
        monkeypatch.setattr(measure, "probe", self.probe)

    def probe(self, config, clips_per_epoch, seconds):
        self.seconds += 10
        batch = config["train"]["batch_size"]
        if (macs := training_macs(config["model"], batch)) > self.largest:
            return None
        costs = Costs(*self.decoding, self.cores, self.is_cpu, self.rate)

        class Probe:
            times = StepTime(macs / self.rate, 10.0)

            def seconds_with_data(_, pipeline, seconds):
                self.seconds += seconds
                return costs.step_seconds(macs, batch, pipeline.repeats)

        return Probe()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders with 20 files each, which no test decodes."""
    root = tmp_path_factory.mktemp("own")
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(20):
            (root / name / f"{i}.mp4").write_text("not a video")
    return root


def config_of(root, model="mevit", **fields):
    """Returns the config of configs/own.py as nested dicts, and the fields that are given."""
    sheet = load(f"{ROOT}/configs/own.py:{model}")
    override_all(sheet, {"data.root": str(root), **{name: str(value) for name, value in fields.items()}})
    return with_own_classes(sheet.to_dict(), given(sheet), "none"), given(sheet)


def derived(machine, root, model="mevit", **fields):
    """Returns the derived config and the sentences."""
    config, names = config_of(root, model, **fields)
    machine.seconds = 5.0
    return derive(config, names, 0.0, lambda: machine.seconds)


@pytest.mark.quick
@pytest.mark.parametrize("model", MODELS)
def test_any_model_gets_a_config_that_works_in_few_sentences(model, data, monkeypatch):
    config, found = derived(Machine(monkeypatch), data, model)
    setup = set_up(config)
    assert setup.total_steps == config["train"]["total_steps"] >= 50 and config["model"]["num_classes"] == len(CLASSES)
    assert config["optim"]["warmup_steps"] < setup.total_steps
    assert 1 <= setup.total_steps // setup.eval_every <= 10
    assert 7 <= len(found) <= 12 and max(map(len, found)) < 300


@pytest.mark.quick
@pytest.mark.parametrize("model", MODELS)
def test_every_size_of_a_model_is_valid_with_any_fields_given(model, data):
    config, _ = config_of(data, model)
    for kept in ({}, {"data.size": 100, "data.frames": 5}, {"model.depth": 6}, {"model.width": 48}, {"model.heads": 2}):
        if model in ("swin", "cvt", "stat") and len(kept) and "data.size" not in kept:
            continue  # widths and depths of a pyramid belong together
        for row in candidates(model, kept):
            assert kept.items() <= row.items()
            sections = {name: dict(config[name]) for name in config if isinstance(config[name], dict)}
            for name, value in row.items():
                section, field = name.split(".")
                sections[section][field] = value
            sections["model"] |= {"image_size": row["data.size"], "frames": row["data.frames"]}
            sections["data"]["short_side"] = None
            check_sections(config | sections)


@pytest.mark.quick
def test_given_fields_are_kept_and_the_others_follow_them(data, monkeypatch):
    kept = {
        "data.size": 48, "data.frames": 6, "data.repeats": 2, "data.workers": 3, "data.flip": 0.25,
        "model.depth": 2, "model.dtype": "bfloat16", "train.batch_size": 24, "train.total_epochs": 30.0,
        "train.eval_every_epochs": 5.0, "optim.warmup_epochs": 2.0, "optim.lr": 0.02, "checkpoint.every_steps": 7,
    }  # fmt: skip
    config, found = derived(Machine(monkeypatch), data, **kept)
    for name, value in kept.items():
        section, field = name.split(".")
        assert config[section][field] == value, name
    setup = set_up(config)
    assert setup.total_steps == 30 * 48 * 2 / 24 and setup.eval_every == 5 * 48 * 2 / 24
    assert config["train"]["total_steps"] is None and config["optim"]["warmup_steps"] is None
    assert config["model"]["image_size"] == 48 and config["data"]["short_side"] == (55, 69)
    with pytest.raises(ConfigError, match="With optim.name=sgd, set optim.lr"):
        derived(Machine(monkeypatch), data, **{"optim.name": "sgd"})
    assert any("Kept as given" in line and "model.depth" in line and "data.repeats" in line for line in found)


@pytest.mark.quick
def test_faster_machines_and_more_minutes_train_larger_models_for_longer_and_all_end_in_time(data, monkeypatch):
    """Times are those of the fake clock and the estimates, to the last evaluation. The batch is the same."""
    sizes = []
    for rate, minutes in ((1e9, 10), (1e10, 10), (3e10, 10), (3e11, 10), (3e11, 100), (3e12, 100)):
        machine = Machine(monkeypatch, rate=rate)
        config, found = derived(machine, data, **{"own.minutes": minutes})
        macs = training_macs(config["model"], config["train"]["batch_size"])
        costs = Costs(*machine.decoding, machine.cores, True, rate)
        steps, seconds = config["train"]["total_steps"], costs.step_seconds(macs, 16, config["data"]["repeats"])
        assert machine.seconds + steps * seconds <= 60 * minutes
        assert not any("Raise own.minutes" in line for line in found)
        sizes.append((config["data"]["size"], config["model"]["width"], macs))
    assert sizes == sorted(sizes) and len(set(sizes)) >= 4
    assert sizes[0][:2] == (64, 64) and sizes[-1][:2] == (224, 768)


@pytest.mark.quick
def test_the_largest_size_that_fits_in_memory_is_taken(data, monkeypatch):
    on_gpu = dict(rate=1e14, cores=16, is_cpu=False)
    largest, _ = derived(Machine(monkeypatch, **on_gpu), data)
    assert largest["model"]["dtype"] == "bfloat16" and largest["model"]["width"] == 768
    limit = training_macs(largest["model"], largest["train"]["batch_size"]) / 2
    smaller, _ = derived(Machine(monkeypatch, largest=limit, **on_gpu), data)
    assert smaller["model"]["width"] == 384 and smaller["data"]["size"] == 224
    with pytest.raises(ConfigError, match="smallest size of this model does not fit in memory"):
        derived(Machine(monkeypatch, largest=1.0, **on_gpu), data)


@pytest.mark.quick
def test_the_same_times_give_the_same_config(data, monkeypatch):
    machine = Machine(monkeypatch)
    assert derived(machine, data) == derived(machine, data)
    one, other = (derived(machine, data, seed=seed)[0] for seed in (1, 2))
    other["seed"], other["data"]["val_seed"] = one["seed"], one["data"]["val_seed"]
    assert one == other


@pytest.mark.quick
def test_too_few_minutes_are_refused_with_a_number_that_is_enough(data, monkeypatch):
    machine = Machine(monkeypatch)
    with pytest.raises(ConfigError, match="own.minutes=0.1 is too short: ") as error:
        derived(machine, data, **{"own.minutes": 0.1})
    minutes = re.search(r"set own.minutes to (\d+) or more\.$", str(error.value))[1]
    derived(machine, data, **{"own.minutes": minutes})
    # A given model that no machine trains in time is refused before it is measured.
    with pytest.raises(ConfigError, match="or leave out data.size, model.depth or model.width"):
        derived(machine, data, **{"data.size": 224, "model.width": 768, "model.depth": 24})
    assert machine.seconds == 5
    # A given length is kept, and it is said that it takes longer.
    config, found = derived(machine, data, **{"own.minutes": 0.1, "train.total_steps": 500})
    assert config["train"]["total_steps"] == 500 and any("Raise own.minutes" in line for line in found)


@pytest.mark.quick
def test_flips_are_off_where_class_names_name_a_side(data, tmp_path, monkeypatch):
    config, found = derived(Machine(monkeypatch), data)
    assert config["data"]["flip"] == 0 and any("Flips are off" in line and "turn left" in line for line in found)
    config, found = derived(Machine(monkeypatch), data, **{"data.flip": 0.5})
    assert config["data"]["flip"] == 0.5 and any("data.flip=0.5, and a mirror changes" in line for line in found)
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{'ab'[i % 2]}\n" for i in range(20)))
    for i in range(20):
        (tmp_path / f"{i}.mp4").write_text("not a video")
    config, found = derived(Machine(monkeypatch), tmp_path)
    assert config["data"]["flip"] == 0.5 and any("Flips: clips are mirrored (data.flip=0.5)" in line for line in found)


@pytest.mark.quick
def test_few_videos_and_large_videos(data, tmp_path, monkeypatch):
    machine = Machine(monkeypatch)
    assert not any("prepare" in line for line in derived(machine, data)[1])
    machine.decoding = Decoding(0.4, 0.002)
    assert any("Most of a step is decoding" in line for line in derived(machine, data)[1])
    for name in ("a/0", "a/1", "b/0", "b/1"):  # of each class, one for training and one for validation
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").write_text("not a video")
    monkeypatch.setitem(derive.__globals__, "num_batch_shards", lambda _: 1)  # of one device
    assert derived(machine, tmp_path)[0]["train"]["batch_size"] == 2
    (tmp_path / "a" / "0.mp4").write_text("")
    (tmp_path / "a" / "1.mp4").write_text("")
    with pytest.raises(DataError, match="is an empty file|are empty files"):
        derived(machine, tmp_path)
    assert machine.seconds == 5  # nothing was measured


@pytest.mark.quick
def test_videos_with_several_labels(tmp_path, monkeypatch):
    names = ("dog", "person", "dog;person", "")
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{names[i % 4]}\n" for i in range(24)))
    for i in range(24):
        (tmp_path / f"{i}.mp4").write_text("not a video")
    config, _ = derived(Machine(monkeypatch), tmp_path, **{"data.labels": "many"})
    setup = set_up(config)
    assert setup.pipeline.multi_hot == config["model"]["num_classes"] == 2
    assert setup.config["checkpoint"]["best"] == "val/mAP@1x1"


@pytest.mark.quick
@pytest.mark.parametrize("model", ["mevit", "vit", "timesformer"])
def test_size_patches_and_normalisation_follow_the_weights(model, data, tmp_path, monkeypatch):
    arrays = tiny_vit(width=192, depth=3, patches=16, patch_size=32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    facts = {"architecture": "vit_tiny", "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    config, found = derived(Machine(monkeypatch), data, model, **{"init.weights": tmp_path})
    chosen = config["model"]
    assert (chosen["width"], chosen["patch_size"], chosen["depth"]) == (192, 32, 3 - (model == "mevit"))
    assert (chosen["mean"], chosen["std"]) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    assert config["optim"]["lr"] < 5e-4 and any("follow init.weights" in line for line in found)
    set_up(config)


@pytest.mark.quick
@pytest.mark.parametrize(
    "mode, function", [("summary", "inference.summarise.print_summary"), ("plan", "training.plan.plan")]
)
def test_a_plan_and_a_summary_describe_the_run_on_the_data(mode, function, data, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(f"vidformers.{function}", lambda config, *_, **__: found.append(config))
    Machine(monkeypatch)
    for flags in (["own.py"], ["vit_b16.py", "--config.data.source=auto"], ["vit_b16.py"]):
        folder = tmp_path / "none"
        words = [f"--config={ROOT}/configs/{flags[0]}", *flags[1:], f"--config.data.root={data}", f"--mode={mode}"]
        assert main.main(["main.py", *words, f"--workdir={folder}"]) == 0 and not folder.exists()
    own, auto, listed = found
    assert own["model"]["num_classes"] == auto["model"]["num_classes"] == len(CLASSES)
    assert own["train"]["total_steps"] >= 50 and own["model"]["width"] < 768
    assert listed["model"]["num_classes"] == 400


@pytest.mark.quick
def test_decoding_decides_on_repeats_and_workers():
    fast, slow = Costs(0.01, 0.002, 2, True, 1e10), Costs(0.4, 0.002, 2, True, 1e10)
    assert (fast.repeats(1e10, 16), slow.repeats(1e10, 16), slow.repeats(1e10, 4)) == (1, 4, 1)
    assert fast.step_seconds(1e10, 16, 1) == pytest.approx(1 + 16 * 0.012 / 2)
    assert fast._replace(uses_cores=False).step_seconds(1e10, 16, 1) == 1
    assert slow._replace(uses_cores=False).step_seconds(1e10, 16, 1) == pytest.approx(16 * 0.402 / 2)
    assert (fast.workers(1e10, 16, 1), slow.workers(1e10, 16, 1)) == (1, 2)


@pytest.mark.quick
def test_steps_and_evaluations_share_the_time():
    planned = length(500, step_seconds=0.5, eval_seconds=2, unplanned=0.1)
    assert planned.seconds < 500 and planned.evaluations == 10 and planned.steps % 10 == 0
    few = length(500, step_seconds=0.5, eval_seconds=100, unplanned=0.1)
    assert few.evaluations == 1 and few.steps < planned.steps
    assert length(500, step_seconds=0.5, eval_seconds=2, unplanned=0.1, steps=3) == (3, 3, 3 * 0.5 + 3 * 3)
    assert length(shortest(0.5, 2, 0.25) + 1, step_seconds=0.5, eval_seconds=2, unplanned=0.25).steps >= 50


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    from tests.own_videos import write_set

    root = tmp_path_factory.mktemp("videos") / "set"
    write_set(root, clips=2)
    return root


def run(root, workdir, *flags, **fields):
    fields = {**TINY, "data.root": root, "own.minutes": 1, **fields}
    config = [f"--config.{name}={value}" for name, value in fields.items()]
    return main.main(["main.py", f"--config={ROOT}/configs/own.py", f"--workdir={workdir}", *config, *flags])


def test_fields_are_derived_once_and_a_run_keeps_them(videos, tmp_path, monkeypatch, capsys):
    """The first command measures on this machine; the others read run.json."""
    assert run(videos, tmp_path) == 0
    out = capsys.readouterr().out
    assert "Measured: a core decodes a clip in" in out and "Flips are off" in out and "The command took" in out
    stored = (tmp_path / "run.json").read_text()
    config = json.loads(stored)["config"]
    assert config["own"] == {"minutes": 1.0} and config["train"]["eval_every_steps"] in (1, 2, 4)

    def fail(*_, **__):
        raise AssertionError("derived again")

    monkeypatch.setattr("vidformers.training.own.derive", fail)
    for flags in ([f"--config={ROOT}/configs/own.py"], [f"--config={ROOT}/configs/own.py", "--mode=eval"], []):
        assert main.main(["main.py", f"--workdir={tmp_path}", *flags]) == 0
        out = capsys.readouterr().out
        assert "Continues with" not in out and "hold, where" not in out, out
    assert json.loads((tmp_path / "run.json").read_text())["config"] == config
    # Another run that starts from its weights has its model.
    monkeypatch.undo()
    fine, _ = derived(Machine(monkeypatch), videos, **{"init.weights": tmp_path})
    fields = ("width", "heads", "depth", "patch_size", "patch_frames", "motion_blocks", "frames", "image_size")
    assert {name: fine["model"][name] for name in fields} == {name: config["model"][name] for name in fields}
    assert load_weights(set_up(fine)) is not None


def test_what_does_not_fit_in_memory_is_not_measured(videos, monkeypatch):
    config, names = config_of(videos, **TINY)
    monkeypatch.setattr(measure, "_bytes_for_a_step", lambda: 1.0)
    with pytest.raises(ConfigError, match="does not fit in memory"):
        derive(config, names, 0.0)


@pytest.mark.quick
def test_a_folder_with_a_run_is_never_derived(data, tmp_path, capsys):
    config, _ = config_of(data)
    write_run_json(tmp_path, {"config": config, "data": {}})
    command = main.parse(["main.py", f"--workdir={tmp_path}"])
    assert main._with_derived_fields(command.config, command, 0.0) is command.config and not capsys.readouterr().out
    command = main.parse(["main.py", f"--workdir={tmp_path}", "--config.own.minutes=20"])
    assert main._with_derived_fields(command.config, command, 0.0)["own"] == config["own"]
    assert "own.minutes is for the start of a run" in capsys.readouterr().out

"""Plans: what fits, how long a step takes at least, and what the input must deliver."""

import json

import jax
import pytest
from tiny import TINY

from configs.base import base
from vidformers import ConfigError
from vidformers.models.registry import build
from vidformers.models.summary import summarise
from vidformers.parallel import topology
from vidformers.training import ahead, plan
from vidformers.training.ahead import Program
from vidformers.training.setup import compile_step, set_up

GIB = 2**30
STATE = 3 * GIB
CHIP = topology.CHIPS["v5e"]
TEXT = """HloModule jit_step

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0), metadata={op_name="state.parameters[\\'head\\'][\\'kernel\\']"}
  %b = f32[100]{0:T(128)} parameter(1), metadata={op_name="state.opt_state[0].mu[\\'head\\'][\\'bias\\']"}
  %e = f32[8,128]{1,0:T(8,128)} parameter(2), metadata={op_name="state.ema[\\'head\\'][\\'bias\\']"}
  %v = u8[4,8,128]{2,1,0} parameter(3), metadata={op_name="batch[\\'video\\']"}
  %s = s32[] parameter(4), metadata={op_name="state.step"}
  %c = f32[1024,1024]{1,0} convolution(%a, %a), backend_config={"window_config":{"estimated_cycles":"1500000"}}
  %r = f32[1024,1024]{1,0} all-reduce(%c), to_apply=%sum
}
"""


def tiny(**fields) -> dict:
    """Returns the config of a tiny ViT with changed fields, 'section__field=value'. Its data do not exist."""
    config = base("vit")
    config.data.update(frames=TINY["frames"], size=TINY["image_size"], num_classes=400, source="kinetics", root="none")
    config.model.update({name: TINY[name] for name in ("patch_size", "width", "heads", "depth")} | {"dtype": "float32"})
    config.train.update(total_epochs=2.0, batch_size=64)
    config.optim.warmup_epochs = 1.0
    return plan.with_changes(config.to_dict(), {name.replace("__", "."): value for name, value in fields.items()})


@pytest.fixture
def compiled(monkeypatch):
    """Replaces the compiler: 3 GiB of state, and 1 GiB for each clip or, with rematerialisation, a quarter of it.

    The sum of the gradients of several micro-batches takes 2 GiB, and an update in the backward pass saves 1 GiB.
    Returns the list of requests.
    """
    requests = []

    def compile_ahead(request) -> Program:
        requests.append(request)
        train, shards = request.config["train"], 16
        clips = request.clips or train["batch_size"] // shards // train["accumulate"]
        size = GIB // 4 if request.config["model"]["remat"] == "full" else GIB
        extra = 2 * (train["accumulate"] > 1) - request.config["optim"]["in_backward"]
        total = STATE + clips * size + extra * GIB
        mesh = {"data": 4, "fsdp": 4, "context": 1}
        arguments = {"step": 4, "parameters": GIB, "opt_state": 2 * GIB, "ema": 0, "batch": 2**20}
        return Program(total, STATE, mesh, 0, 1.0, TEXT if total <= CHIP.memory else None, arguments)

    monkeypatch.setattr(topology, "check_compiler", topology.chip)
    monkeypatch.setattr(plan, "check_compiler", topology.chip)
    monkeypatch.setattr(plan, "compile_ahead", compile_ahead)
    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    return requests


def planned(config: dict, **flags) -> dict:
    return plan.plan(config, "runs/tiny", **{"topology": "v5e:4x4"} | flags)


@pytest.mark.quick
def test_the_screen_is_short_and_the_last_line_is_the_plan(compiled, capsys):
    line = planned(tiny())
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[-1]) == line
    assert len(out) < 40 and max(len(row) for row in out[:-1]) <= 80
    for word in ("yes: 7.00 GiB of 15.75 GiB", "240,000 videos (documented)", "all-reduce: 1 x, 4.0 MiB", "at least"):
        assert word in " ".join(" ".join(out[:-1]).replace("│", " ").split()), word


@pytest.mark.quick
def test_the_bytes_of_a_device_are_divided_among_those_that_hold_them(compiled):
    line = planned(tiny(), largest="false")
    assert (line["fits"], line["bytes"], line["clips"], line["devices"]) == (True, 7 * GIB, 4, 16)
    holders = line["bytes_by_holder"]
    assert (holders["parameters"], holders["optimizer_state"], holders["ema"]) == (2**22, 512, 4096)
    assert holders["batch"] == 4 * 8 * 128
    assert sum(holders.values()) == line["bytes"]
    assert line["largest"] is None and len(compiled) == 1


@pytest.mark.quick
def test_the_largest_batches_are_those_of_the_config_and_of_rematerialisation(compiled):
    rows = planned(tiny())["largest"]
    assert [(row["settings"], row["clips"], row["batch_size"], row["accumulate"]) for row in rows] == [
        ({}, 12, 192, 1),  # 3 GiB + 12 of 15.75
        ({"model.remat": "full"}, 51, 816, 1),
    ]


@pytest.mark.quick
def test_a_step_that_does_not_fit_comes_with_the_settings_that_make_it_fit(compiled, capsys):
    line = planned(tiny(train__batch_size=16 * 24))
    assert not line["fits"] and line["bytes"] == 27 * GIB
    assert line["bytes_by_holder"]["parameters"] == GIB  # without a program, the bytes without padding
    assert line["exchanges"] is None and line["bytes_seconds"] is None and line["products_seconds"] > 0
    # 12 clips fit in one micro-batch, but not beside the sum of the gradients: three micro-batches of 8 do.
    assert [(row["clips"], row["accumulate"]) for row in line["largest"]] == [(12, 3), (51, 1)]
    assert "NO: 27.00 GiB of 15.75 GiB" in capsys.readouterr().out


@pytest.mark.quick
def test_updates_in_the_backward_pass_are_tried_if_nothing_else_fits(compiled, monkeypatch):
    monkeypatch.setitem(topology.CHIPS, "v5e", CHIP._replace(memory=STATE))
    rows = planned(tiny())["largest"]
    assert [(row["settings"], row["clips"]) for row in rows] == [
        ({}, 0),
        ({"model.remat": "full"}, 0),
        ({"model.remat": "full", "optim.in_backward": True}, 4),
    ]
    assert [row["accumulate"] for row in rows] == [None, None, 1]
    assert len(planned(tiny(optim__clip_norm=1.0))["largest"]) == 2  # clipping needs the whole gradient


@pytest.mark.quick
def test_micro_batches_of_the_config_that_are_not_needed_are_named(compiled):
    line = planned(tiny(train__accumulate=4))
    assert line["clips"] == 1 and line["largest"][0]["accumulate"] == 1
    assert line["largest"][0]["batch_size"] == 10 * 4 * 16


@pytest.mark.quick
def test_the_time_of_a_step_is_at_least_that_of_its_products_and_of_its_bytes(compiled):
    config = tiny()
    line = planned(config, largest="false")
    macs = summarise(lambda rngs: build(**config["model"], rngs=rngs)).macs_per_view
    assert line["products_seconds"] == pytest.approx(6 * macs * 4 / CHIP.peak)
    assert line["bytes_seconds"] == pytest.approx(5 * 2**22 / CHIP.bandwidth)  # three arrays, and two of the all-reduce
    assert line["at_least_seconds"] == max(line["products_seconds"], line["bytes_seconds"])
    assert line["estimated_seconds"] is None and compiled[-1].until_buffers
    assert line["steps"] == 2 * 240_000 // 64
    assert line["hours_at_least"] == pytest.approx(line["steps"] * line["at_least_seconds"] / 3600)
    estimated = planned(config, largest="false", estimate="true")
    assert estimated["estimated_seconds"] == 1e-3 and not compiled[-1].until_buffers
    assert estimated["hours_estimated"] == pytest.approx(7500 * 1e-3 / 3600)
    assert estimated["decode_clips_per_second"] == pytest.approx(64 / 1e-3)


@pytest.mark.quick
def test_the_input_needs_the_cores_that_decode_as_fast_as_steps_consume(compiled):
    line = planned(tiny(), largest="false", decode_rate="20")
    assert line["decode_clips_per_second"] == pytest.approx(64 / line["at_least_seconds"])
    assert line["decode_frames_per_second"] == pytest.approx(TINY["frames"] * line["decode_clips_per_second"])
    assert line["decode_cores"] == pytest.approx(line["decode_clips_per_second"] / 20)


@pytest.mark.quick
@pytest.mark.parametrize(
    "frames, sampling, stride, measured",
    [(8, "uniform", 1, 23.84 / 2), (64, "uniform", 1, 17.27 / 2), (16, "dense", 4, 34.69 / 2)],
)
def test_the_assumed_rate_of_decoding_is_the_measured_one(frames, sampling, stride, measured):
    data = {"frames": frames, "sampling": sampling, "stride": stride, "repeats": 1}
    assert plan.clips_per_core_second(data, None) == pytest.approx(measured, rel=0.03)
    assert plan.clips_per_core_second(data | {"repeats": 2}, None) > measured


@pytest.mark.quick
def test_the_number_of_videos_is_given_or_counted_or_documented(tmp_path):
    assert plan.training_videos(tiny(), "77") == (77, "given")
    assert plan.training_videos(tiny(), None) == (240_000, "documented")
    own = tiny(data__source="csv", data__num_classes=2, data__root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.train.*--train_videos=N\.$"):
        plan.training_videos(own, None)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "train.csv").write_text("a.mp4,0\nb.mp4,1\nc.mp4,0\n")
    assert plan.training_videos(own, None) == (3, "list")


@pytest.mark.quick
@pytest.mark.parametrize(
    "flags, words",
    [
        (dict(topology="v9:1"), "--topology=v9:1 is unknown"),
        (dict(estimate="yes"), "--estimate=yes must be true or false"),
        (dict(largest="no"), "--largest=no must be true or false"),
        (dict(estimate="true", topology="h100:1"), "--estimate=true needs a --topology of TPUs"),
        (dict(estimate="true", topology=None), "--estimate=true needs a --topology of TPUs"),
        (dict(train_videos="many"), "--train_videos=many must be a number"),
        (dict(decode_rate="0"), "--decode_rate=0 must be a number"),
        (dict(decode_rate="fast"), "--decode_rate=fast must be a number"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_is_compiled(flags, words, compiled):
    with pytest.raises(ConfigError, match=words):
        planned(tiny(), **flags)
    assert not compiled


def test_the_plan_of_the_devices_that_are_here_has_the_bytes_of_the_step_that_training_compiles(capsys):
    config = tiny(model__remat="full", train__batch_size=16, mesh__fsdp=2, data__source="motion_clips")
    config["train"] |= {"total_epochs": None, "total_steps": 30, "peak_tflops": 1.0}
    config["optim"] |= {"warmup_epochs": None, "ema_decay": 0.9}
    line = planned(config, topology=None, largest="false", train_videos="64")
    stats = compile_step(set_up(config, clips_per_epoch=64)).memory_analysis()
    expected = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    assert line["bytes"] == expected + stats.temp_size_in_bytes
    assert line["devices"] == jax.device_count() and line["mesh"]["fsdp"] == 2
    holders = line["bytes_by_holder"]
    assert holders["ema"] == holders["parameters"] > 0 and holders["optimizer_state"] >= 2 * holders["parameters"]
    assert holders["batch"] >= 16 // line["devices"] * 4 * 32 * 32 * 3
    assert set(line["exchanges"]) & {"all-reduce", "all-gather"}
    assert line["products_seconds"] > 0 and line["bytes_seconds"] is None and line["steps"] == 30
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line

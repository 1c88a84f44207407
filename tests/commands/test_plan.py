"""The command `--mode=plan`: its flags, and its mistakes in one sentence with status 2."""

import importlib.util

import pytest
from command import ROOT, one_sentence

import main
from vidformers.parallel import topology
from vidformers.training import ahead
from vidformers.training.ahead import Request

pytestmark = pytest.mark.quick
COMMAND = ["main.py", f"--config={ROOT}/configs/kinetics400.py:vit_b16", "--mode=plan"]


def error(capsys, *flags: str, command=COMMAND) -> str:
    """Returns the message of a command that must end with status 2."""
    assert main.main([*command, *flags]) == 2
    return one_sentence(capsys.readouterr().err)


def test_flags_of_a_plan_reach_it():
    command = main.parse([*COMMAND, "--topology=v5e:4x4", "--estimate=true", "--config.mesh.fsdp=4"])
    assert command.flags["topology"] == "v5e:4x4" and command.flags["estimate"] == "true"
    assert command.flags["train_videos"] is None
    assert command.config["mesh"]["fsdp"] == 4 and command.workdir == "runs/kinetics400_vit_b16"


@pytest.mark.parametrize("flag", ["topology", "estimate", "largest", "train_videos", "decode_rate"])
def test_flags_of_a_plan_are_refused_in_training(flag, capsys):
    command = [COMMAND[0], COMMAND[1], "--mode=train"]
    assert f"--{flag} is a flag of --mode=plan." in error(capsys, f"--{flag}=1", command=command)


def test_a_plan_of_several_processes_is_refused(capsys):
    assert "--mode=plan runs in one process" in error(capsys, "--distributed=true")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--topology=v9:4x4"], "--topology=v9:4x4 is unknown. Use one of v5e:1x1,"),
        (["--topology=v5e:4x4", "--estimate=1"], "--estimate=1 must be true or false."),
        (["--estimate=true"], "--estimate=true needs a --topology of TPUs"),
        (["--train_videos=0"], "--train_videos=0 must be a number of videos"),
        (["--config.data.num_classes=7"], "--train_videos=N"),
    ],
)
def test_a_wrong_flag_ends_in_one_sentence(flags, words, capsys):
    assert words in error(capsys, *flags)


@pytest.mark.parametrize("name, what", [("v5e:4x4", "libtpu"), ("h100:8", "the CUDA plugin of JAX")])
def test_a_compiler_that_is_not_installed_is_named_before_a_wait_for_another_process(name, what, monkeypatch, capsys):
    find = importlib.util.find_spec
    compilers = ("libtpu", "jax_plugins.xla_cuda12")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in compilers else find(module))
    monkeypatch.setattr(topology, "libtpu_lock", None)  # a call would fail
    message = error(capsys, f"--topology={name}")
    assert f"needs {what}, which is not installed here. Run `make ahead`" in message
    with pytest.raises(topology.ConfigError, match="`make ahead`"):
        ahead.compile_ahead(Request({}, name, 1))


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--config.mesh.fsdp=3", "--config.mesh.data=2"],
            "mesh.data=2 x mesh.fsdp=3 x mesh.context=1 needs 6 devices",
        ),
        (["--config.mesh.data=8"], "train.batch_size=420 must be divisible by mesh.data x mesh.fsdp=8"),
        (
            ["--config.optim.in_backward=true", "--config.optim.clip_norm=none", "--config.train.batch_size=480"],
            "optim.in_backward=true keeps only the input of each layer",
        ),
    ],
)
def test_a_field_that_the_devices_do_not_allow_is_named(flags, words, capsys):
    assert words in error(capsys, *flags)

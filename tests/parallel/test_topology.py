"""Described topologies: their chips, their mistakes, and the lock of libtpu. No compiler for TPUs or GPUs is needed."""

import importlib.util
import threading

import pytest

from vidformers import ConfigError
from vidformers.parallel import topology

pytestmark = pytest.mark.quick


def test_every_topology_has_a_chip_with_a_peak_that_its_memory_cannot_feed():
    for name in topology.TOPOLOGIES:
        chip = topology.chip(name)
        assert chip.peak > 50 * chip.bandwidth > 0
        assert 2**30 < chip.memory < 2**37
        assert (chip.clock is not None) == topology.is_tpu(name)


@pytest.mark.parametrize(
    "name", ["v5e", "v9:1", "h100", "h100:", "v5e:4x", "4x4", "h100:eight", "v5e:4x4x4", "v5p:4x4"]
)
def test_an_unknown_topology_is_named_with_those_that_are_known(name):
    with pytest.raises(ConfigError, match=rf"^--topology={name} is unknown. Use one of v5e:1x1, .*h100:2x8\.$"):
        topology.chip(name)


@pytest.mark.parametrize("name, what", [("v5e:4x4", "libtpu"), ("h100:8", "the CUDA plugin of JAX")])
def test_a_compiler_that_is_not_installed_is_named_with_the_command_that_installs_it(name, what, monkeypatch):
    find = importlib.util.find_spec
    compilers = ("libtpu", "jax_plugins.xla_cuda12")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module in compilers else find(module))
    with pytest.raises(ConfigError, match=rf"^--topology={name} needs {what}, which is not installed.*`make ahead`"):
        topology.devices(name)


def test_a_second_process_waits_for_libtpu_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(topology, "_LOCK", tmp_path / "lock")
    entered = threading.Event()

    def second():
        with topology.libtpu_lock():
            entered.set()

    with topology.libtpu_lock():
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(20)
    assert entered.is_set()
    assert capsys.readouterr().err == "Waiting for another process that compiles with libtpu.\n"

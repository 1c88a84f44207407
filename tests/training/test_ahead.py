"""Compiling steps ahead of time, with devices of the CPU in place of described ones."""

import json

import jax
import pytest
from tiny import TINY

from configs.base import base
from vidformers import ConfigError
from vidformers.parallel import topology
from vidformers.parallel.account import account
from vidformers.training import ahead
from vidformers.training.ahead import Request, next_clips


def tiny(**train) -> dict:
    """Returns the config of a tiny ViT. Its data do not exist."""
    config = base("vit")
    config.data.update(frames=TINY["frames"], size=TINY["image_size"], num_classes=TINY["num_classes"])
    config.model.update({name: TINY[name] for name in ("patch_size", "width", "heads", "depth")} | {"dtype": "float32"})
    config.train.update({"total_epochs": 2.0, "mixup": 0.8} | train)
    config.optim.warmup_epochs = 1.0
    return config.to_dict()


@pytest.fixture
def cpus(monkeypatch):
    monkeypatch.setattr(topology, "devices", lambda name: jax.devices()[: int(name.partition(":")[2])])


@pytest.mark.parametrize("step", ahead.STEPS)
def test_a_step_is_compiled_without_data_and_its_bytes_are_reported(step, cpus, tmp_path):
    request = Request(tiny(), "h100:2", clips=2, step=step)
    fields, text = ahead._compile_here(request, tmp_path)
    started = json.loads((tmp_path / "started.json").read_text())
    assert fields["mesh"] == started["mesh"] == {"data": 2, "fsdp": 1, "context": 1}
    assert fields["bytes"] > fields["state_bytes"] > 0
    assert fields["kernel_flops"] == 0 and fields["seconds"] > 0
    assert ("all-reduce" in account(text).exchanges) == (step == "train")  # the gradients; others gather each video


@pytest.mark.quick
def test_the_batch_has_the_asked_clips_on_each_shard_in_each_micro_batch(cpus):
    config = tiny(accumulate=3)
    config["mesh"] |= {"fsdp": 2, "context": 2}
    config["eval"]["batch_size"] = 7  # of another number of devices
    setup = ahead.describe(Request(config, "h100:8", clips=4))
    assert setup.train_config.batch_size == 4 * 4 * 3
    assert setup.train_config.mixing is not None
    assert ahead.describe(Request(tiny(), "h100:1", clips=1)).train_config.mixing is None


@pytest.mark.quick
@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(topology="v9:1"), "--topology=v9:1 is unknown"),
        (dict(step="fly"), "--step=fly must be one of train, eval, predict"),
        (dict(clips=0), "--clips=0 must be at least 1"),
    ],
)
def test_a_wrong_request_is_refused_before_a_process_is_started(fields, words):
    with pytest.raises(ConfigError, match=words):
        ahead.compile_ahead(Request(**{"config": tiny(), "topology": "h100:1", "clips": 1} | fields))


@pytest.mark.skipif(topology._is_installed("jax_plugins.xla_cuda12"), reason="the CUDA plugin is installed")
def test_a_mistake_in_the_process_that_compiles_is_reported_in_one_sentence():
    with pytest.raises(ConfigError, match="`make ahead`"):
        ahead.compile_ahead(Request(tiny(), "h100:1", clips=1))


def search(size, first: int, limit: int) -> tuple[int, int]:
    """Returns the largest number of clips whose `size` is within a limit, and the programs that the search compiled."""
    sizes, clips = {}, first
    while clips is not None:
        sizes[clips] = size(clips)
        clips = next_clips(sizes, limit)
    return max((clips for clips in sizes if sizes[clips] <= limit), default=0), len(sizes)


@pytest.mark.quick
@pytest.mark.parametrize("first", [1, 4, 9, 40, 1000])
@pytest.mark.parametrize("limit, largest", [(1600, 15), (1699, 15), (199, 0), (90_100, 900)])
def test_the_search_for_the_largest_batch_needs_few_programs_if_memory_grows_linearly(first, limit, largest):
    found, compiled = search(lambda clips: 100 + 100 * clips, first, limit)
    assert found == largest
    assert compiled <= 5 or largest == 0


@pytest.mark.quick
@pytest.mark.parametrize("first", [1, 7, 100])
def test_the_search_ends_at_the_largest_batch_if_memory_grows_in_steps(first):
    assert search(lambda clips: 100 + 90 * (clips // 8) * 8 + clips**2, first, 10_000)[0] == 64


@pytest.mark.quick
def test_programs_that_are_known_are_not_compiled_again(monkeypatch):
    compiled = []

    def compile_ahead(request):
        compiled.append((request.clips, request.until_buffers))
        size = (1 + request.clips) * 2**30
        return ahead.Program(bytes=size, state_bytes=0, mesh={}, kernel_flops=0, seconds=0.0, text="")

    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    request = Request(tiny(), "v5e:1x1", clips=4)
    assert ahead.largest_clips(request, {4: 5 * 2**30}) == 14  # 15 GiB of 15.75
    assert compiled == [(8, True), (14, True), (15, True)]


@pytest.mark.quick
def test_a_search_with_a_tolerance_needs_few_programs_if_memory_grows_slower_near_the_limit():
    """The compiler rematerialises by itself: bytes of MEViT-B on one v5e chip, in MiB."""
    sizes, clips = {0: 1175, 4: 3707}, 4
    while clips is not None:
        sizes[clips] = 1175 + 633 * clips if clips < 23 else 14_700 if clips < 36 else 19_270 + 500 * (clips - 36)
        clips = next_clips(sizes, 16_128, tolerance=0.2)
    assert 35 / 1.2 <= max(clips for clips in sizes if sizes[clips] <= 16_128) <= 35
    assert len(sizes) <= 7

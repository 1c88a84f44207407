"""The rates of a log line, and the model FLOPs utilisation `train/mfu` among them."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import maker

from vidformers.errors import ConfigError
from vidformers.models import summary
from vidformers.parallel.mesh import make_mesh
from vidformers.parallel.peak import PEAKS, peak_flops
from vidformers.parallel.topology import CHIPS
from vidformers.training import timing
from vidformers.training.config import TrainConfig
from vidformers.training.reports import status_line
from vidformers.training.timing import Throughput, peak_seconds_per_clip

pytestmark = pytest.mark.quick


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that stands still. Assign `clock.now` to move it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def rates_of_two_steps(clock, **options) -> dict:
    """Returns the rates of two steps of 3 s with an evaluation of 100 s between them."""
    throughput, batches = Throughput(8, **options), iter(2 * [{"decoded": np.full(8, 5)}])
    for _ in range(2):
        throughput.next_batch(batches)
        clock.now += 3
        with throughput.paused():
            clock.now += 100
    return throughput.pop_rates()


def test_the_utilisation_is_that_of_the_steps_without_evaluations(clock):
    rates = rates_of_two_steps(clock, peak_seconds=0.15)
    assert rates["train/mfu"] == pytest.approx(16 * 0.15 / 6)
    assert rates["train/clips_per_second"] == pytest.approx(16 / 6)
    logged = rates | {"train/loss": 1.0}
    assert "MFU 40.0%" in status_line(logged)


def test_without_a_peak_there_is_no_utilisation(clock, monkeypatch):
    monkeypatch.setattr(timing, "summarise", pytest.fail)  # the model is not traced
    peak_seconds = peak_seconds_per_clip(maker("vit"), make_mesh(), None)
    assert peak_seconds is None
    rates = rates_of_two_steps(clock, peak_seconds=peak_seconds)
    assert "train/mfu" not in rates
    assert "MFU" not in status_line(rates | {"train/loss": 1.0})


def test_the_products_of_training_are_three_forward_passes_at_the_peak_of_all_devices():
    make_model = maker("vit")
    macs = summary.summarise(make_model).macs_per_view
    seconds = partial(peak_seconds_per_clip, make_model)
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind="TPU v5 lite")] * 4), size=4)
    assert seconds(mesh, None) == pytest.approx(6 * macs / (4 * CHIPS["v5e"].peak))
    assert seconds(mesh, 2.0) == pytest.approx(6 * macs / (4 * 2e12))


def test_the_peaks_of_the_described_chips_are_known_by_the_names_of_their_devices():
    kinds = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "h100": "NVIDIA H100 80GB HBM3"}
    assert {name: PEAKS[kind] for name, kind in kinds.items()} == {name: chip.peak for name, chip in CHIPS.items()}
    assert peak_flops(jax.devices("cpu")[0]) is None


@pytest.mark.parametrize("peak", [0.0, -1.0])
def test_a_peak_that_is_not_positive_is_refused(peak):
    with pytest.raises(ConfigError, match=r"train\.peak_tflops=.* must be above 0\."):
        TrainConfig(peak_tflops=peak)

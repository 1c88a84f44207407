"""The analytical model of scaling (benchmarks/scaling.py) obeys laws that hold for any speed of device and link."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import DEVICES, Assumed, Cost, ring_bytes, step

COST = Cost(params=100_000_000, macs=150_000_000_000)
devices = st.sampled_from(sorted(DEVICES)).map(DEVICES.get)
powers = st.integers(0, 9).map(lambda k: 2**k)


@pytest.mark.quick
@given(devices, powers, powers, st.integers(1, 64), st.integers(1, 100))
def test_a_larger_batch_never_lowers_efficiency(device, fsdp, data, batch, calls):
    one, two = (step(COST, device, fsdp * data, fsdp, size, Assumed(calls=calls)) for size in (batch, 2 * batch))
    for seconds in ("overlapped", "in_turn"):
        assert two.compute / getattr(two, seconds) >= one.compute / getattr(one, seconds) * (1 - 1e-12)
    assert one.compute < one.overlapped <= one.in_turn * (1 + 1e-12)
    assert two.hides_at == pytest.approx(one.hides_at / 2)


@given(devices, st.integers(1, 64))
def test_one_device_communicates_nothing(device, batch):
    single = step(COST, device, 1, 1, batch)
    assert (single.gather, single.reduce, single.hides_at) == (0, 0, 0)
    assert single.overlapped == pytest.approx(single.compute + single.update)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_bytes_of_a_ring_all_reduce(count):
    """Simulates the all-reduce: in each of 2 (count - 1) rounds, every device sends one chunk to its neighbour."""
    chunks, sent = [[10**device + chunk for chunk in range(count)] for device in range(count)], 0
    sums = [sum(column) for column in zip(*chunks, strict=True)]
    for turn in range(2 * (count - 1)):
        is_reducing = turn < count - 1  # the later rounds send sums, which replace the chunks of the neighbour
        messages = [((device - turn) % count, chunks[device][(device - turn) % count]) for device in range(count)]
        for device, (chunk, value) in enumerate(messages):
            neighbour = chunks[(device + 1) % count]
            neighbour[chunk] = value + neighbour[chunk] * is_reducing
        sent += 1
    assert chunks == [sums] * count
    assert sent == 2 * ring_bytes(count, count)  # counted in chunks: the array has `count` of them

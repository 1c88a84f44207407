"""What the paper model of scaling must say whatever the speeds are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling import DEVICES, Assumed, Cost, ring_bytes, step

COST = Cost(params=100_000_000, macs=150_000_000_000)
devices = st.sampled_from(sorted(DEVICES)).map(DEVICES.get)
powers = st.integers(0, 9).map(lambda k: 2**k)


@given(devices, powers, powers, st.integers(1, 64), st.integers(1, 100))
def test_a_larger_batch_never_lowers_efficiency(device, fsdp, data, batch, calls):
    one, two = (step(COST, device, fsdp * data, fsdp, size, Assumed(calls=calls)) for size in (batch, 2 * batch))
    for seconds in ("overlapped", "in_turn"):
        assert two.compute / getattr(two, seconds) >= one.compute / getattr(one, seconds) * (1 - 1e-12)
    assert one.compute < one.overlapped <= one.in_turn * (1 + 1e-12)
    assert two.hides_at == pytest.approx(one.hides_at / 2)


@given(devices, st.integers(1, 64))
def test_one_device_sends_nothing(device, batch):
    alone = step(COST, device, 1, 1, batch)
    assert (alone.gather, alone.reduce, alone.hides_at) == (0, 0, 0)
    assert alone.overlapped == pytest.approx(alone.compute + alone.update)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_bytes_of_a_ring(count):
    """An all-reduce done by hand: in each of 2 (count - 1) rounds every device hands one chunk to its neighbour."""
    values, sent = [[10**d + chunk for chunk in range(count)] for d in range(count)], 0
    total = [sum(column) for column in zip(*values, strict=True)]
    for turn in range(2 * (count - 1)):
        adding = turn < count - 1  # afterwards whole sums are handed on
        handed = [((d - turn) % count, values[d][(d - turn) % count]) for d in range(count)]
        for d, (chunk, value) in enumerate(handed):
            neighbour = values[(d + 1) % count]
            neighbour[chunk] = value + neighbour[chunk] * adding
        sent += 1
    assert values == [total] * count
    assert sent == 2 * ring_bytes(count, count)  # in chunks, of which the array has `count`

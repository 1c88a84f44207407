"""Predicts how training steps scale over many devices, from multiply-adds, bytes and the speeds of links.

Command: python -m benchmarks.scaling [--batch=8] [--efficiency=0.4] [--links=0.5] [--calls=12]
Nothing is measured; the counts are those of `--mode=summary`. Prints Markdown tables: one for each kind of device, and
one of the input that they need. docs/scaling.md gives the formulas and the sources of the speeds.
"""

import argparse
import math
from functools import partial
from typing import NamedTuple

CONFIGS, COUNTS = ("mevit_b16", "havit_b16"), (8, 64, 512)
FLOAT = 4  # bytes: parameters, gradients, moments and communication are float32
UPDATE = 7 * FLOAT  # bytes a parameter: AdamW reads it, its gradient and two moments, and writes all but the gradient
# Clips per second and core: 8 frames of 224 x 224, uniform, of 10 s in groups of 250 frames, by 2 workers on 2 cores.
INPUT = {"files": 23.8 / 2, "shards": 96.0 / 2}


class Device(NamedTuple):
    """Speeds in bytes per second, one way, and latencies in seconds. An island is a group joined by fast links.

    On a TPU, an island that is too small for its links to close to rings has half of their speed.
    """

    flops: float  # operations per second, dense bfloat16
    hbm: float  # memory bandwidth
    island: int  # devices in an island
    axes: int  # axes of the island's torus, or 1 where a switch joins all devices
    links: float  # links of one device within the island, with all rings closed
    closed_from: int  # devices from which the rings are closed
    hop: float  # latency of a link
    network: float  # network of one device, between islands
    network_hop: float  # latency of the network


DEVICES = {
    "H100 SXM": Device(989e12, 3.35e12, 8, 1, 450e9, 1, 1.9e-6, 50e9, 4e-6),
    "TPU v5e": Device(197e12, 819e9, 256, 2, 4 * 50e9, 256, 1e-6, 3.125e9, 20e-6),
    "TPU v5p": Device(459e12, 2765e9, 8960, 3, 6 * 100e9, 64, 1e-6, 6.25e9, 20e-6),
}


class Cost(NamedTuple):
    params: int
    macs: int  # multiply-adds of a forward pass of one clip


class Assumed(NamedTuple):
    efficiency: float = 0.4  # share of `Device.flops` that a step reaches while it computes
    links: float = 0.5  # share of the speed of links that collectives reach
    calls: int = 12  # collectives in a pass over all parameters, one a layer


DEFAULTS = Assumed()


class Step(NamedTuple):
    """Times of one step in seconds."""

    compute: float
    gather: float  # one all-gather of all parameters; the forward and the backward pass need one each
    reduce: float  # reduction of all gradients
    update: float
    calls: int

    @property
    def overlapped(self) -> float:
        """Seconds of a step whose communication overlaps with the computation, as far as a pass is long enough.

        One call in each pass, its first gather or last reduction, does not overlap.
        """

        def pass_time(compute, sending):
            return max(compute, sending * (1 - 1 / self.calls)) + sending / self.calls

        return (
            pass_time(self.compute / 3, self.gather)
            + pass_time(2 * self.compute / 3, self.gather + self.reduce)
            + self.update
        )

    @property
    def in_turn(self) -> float:
        """Seconds of a step whose communication and computation take turns."""
        return self.compute + 2 * self.gather + self.reduce + self.update

    @property
    def hides_at(self) -> float:
        """The multiple of this batch size at which each pass takes as long as its communication."""
        return max(3 * self.gather, 1.5 * (self.gather + self.reduce)) / self.compute


def ring_bytes(size: float, count: int) -> float:
    """Returns the bytes that each of `count` devices sends in a reduce-scatter or an all-gather of `size` bytes.

    An all-reduce is both.
    """
    return size * (count - 1) / count


def pass_seconds(device: Device, size: float, count: int, stride: int, total: int, assumed: Assumed) -> float:
    """Returns the seconds of a reduce-scatter or all-gather of `size` bytes.

    The `count` participants are every stride-th of `total` devices. Transfers inside the islands and between them run
    at the same time, so the slower of the two counts. The collective is divided into `calls` calls, and each of them
    makes all the hops.
    """
    inside = min(count, max(device.island // stride, 1))
    outside = count // inside
    links = device.links if min(total, device.island) >= device.closed_from else device.links / 2
    seconds = max(ring_bytes(size, inside) / links, ring_bytes(size / inside, outside) / device.network)
    hops = device.axes * (inside ** (1 / device.axes) - 1)
    return seconds / assumed.links + assumed.calls * (hops * device.hop + (outside - 1) * device.network_hop)


def step(cost: Cost, device: Device, count: int, fsdp: int, batch: int, assumed: Assumed = DEFAULTS) -> Step:
    """Returns the times of a step on `count` devices, with parameters sharded over groups of `fsdp` neighbours."""
    size, run = cost.params * FLOAT, partial(pass_seconds, device, total=count, assumed=assumed)
    gather = run(size, fsdp, 1)
    reduce = gather + 2 * run(size / fsdp, count // fsdp, fsdp)
    return Step(
        3 * 2 * cost.macs * batch / (device.flops * assumed.efficiency),
        gather,
        reduce,
        UPDATE * cost.params / fsdp / device.hbm,
        assumed.calls,
    )


def count_cost(name: str) -> Cost:
    """Returns the counts of the model of `configs/NAME.py`."""
    from configs.loading import load
    from vidformers import build
    from vidformers.models.summary import summarise

    summary = summarise(partial(build, **load(f"configs/{name}.py").model.to_dict()))
    return Cost(summary.params, summary.macs_per_view)


def table(title, heads, rows) -> None:
    print(f"{title}:\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="clips a device")
    for name, value in DEFAULTS._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    batch, *rest = vars(parser.parse_args()).values()
    costs, needs = {config: count_cost(config) for config in CONFIGS}, []
    for name, device in DEVICES.items():
        rows = []
        for config, count in ((config, count) for config in CONFIGS for count in COUNTS):
            for fsdp in sorted({1, min(device.island, count), count}):  # none, an island, all
                s = step(costs[config], device, count, fsdp, batch, Assumed(*rest))
                times = (f"{1e3 * x:.1f}" for x in (s.compute, 2 * s.gather + s.reduce, s.overlapped, s.in_turn))
                rows.append(
                    (
                        config,
                        count,
                        fsdp,
                        *times,
                        f"{s.compute / s.overlapped:.0%}",
                        f"{s.compute / s.in_turn:.0%}",
                        max(math.ceil(s.hides_at * batch), 1),
                    )
                )
                if fsdp == 1:
                    clips = count * batch / s.overlapped
                    needs.append((name, config, count, *(f"{clips / x:,.0f}" for x in (1, *INPUT.values()))))
        table(
            f"{name}, --batch={batch}",
            (
                "config",
                "devices",
                "`fsdp`",
                "compute, ms",
                "sending, ms",
                "step, ms",
                "in turn, ms",
                "computing",
                "in turn",
                "hides at",
            ),
            rows,
        )
    table("Input", ("device", "config", "devices", "clips/s", *(f"cores, {kind}" for kind in INPUT)), needs)


if __name__ == "__main__":
    main()

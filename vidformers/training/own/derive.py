"""Derives the fields of a new run on own videos: from the data, from measurements, and from the time that is given.

First comes what the data and the weights decide: batch, flips, and the sizes of models that come into question. Then
decoding is measured, and the training step of one size, from whose multiply-adds the times of the others are estimated.
The largest size that sees enough clips in the time is measured and taken. Last, its step and the workers that decode
are measured side by side, and what is left of the time gives the number of steps.
"""

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from input_pipeline import Pipeline
from input_pipeline.remarks import check_training_data
from input_pipeline.sizes import default_short_side
from input_pipeline.sources.something import sided
from input_pipeline.text import enumeration
from vidformers.errors import require
from vidformers.parallel.mesh import make_mesh, num_batch_shards
from vidformers.pretrained import Init
from vidformers.training.optim import duration_in_steps
from vidformers.training.own import measure
from vidformers.training.own.budget import Costs, Length, largest_affordable, length, margin, shortest
from vidformers.training.own.describe import Derived, sentences
from vidformers.training.own.recipe import TOTAL, clips_needed, schedule
from vidformers.training.own.sizes import Fields, candidates
from vidformers.training.own.weights import model_of_weights

# Multiply-adds per second of a training step, before the first measurement. They choose the size to measure first.
_CORE_RATE, _ACCELERATOR_RATE = 2e10, 1e13
_MOST_CORE_RATE = 1e11  # of any core: a given model that is too slow at this rate is refused before it is measured
_PROBING_SHARE = 0.2  # of the minutes, after which no larger size is measured; the start and the data count
_STEPS_SHARE, _DECODING_SHARE, _DATA_SHARE = 0.005, 0.02, 0.02  # of the minutes, for each measurement
_TRAINING_SHARE = 0.75  # of the time that is left when a size is chosen; the rest is for compiling and evaluating
_MOST_DATA_SECONDS = 30.0
_ANY_STEPS = 1_000_000  # of a step that is measured: longer than any warm-up that is given

_SIZE = ("data.size", "data.frames", "init.weights", "train.batch_size")  # fields that make steps longer

# Two names of one field.
_ALIASES = {"model.image_size": "data.size", "model.frames": "data.frames", "model.num_classes": "data.num_classes"}


def derive(
    config: dict[str, Any],
    given: frozenset[str],
    started: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Any], list[str]]:
    """Returns the config of a new run with all fields derived, and sentences on what was chosen and why.

    Args:
        config: the config as nested dicts, with `own.minutes` set and the number of classes of the data.
        given: the fields that the command line sets, such as 'data.size'. They are kept.
        started: the time at which the command started, by `clock`.
        clock: returns seconds.
    Raises:
        ConfigError, DataError: the data or the weights cannot be read, or the given fields cannot work together.
    """
    require(
        jax.process_count() == 1,
        "own.minutes is measured on one machine. With --distributed=true set --config.own.minutes=none, and give the "
        "fields that configs/own.py derives.",
    )
    name = config["optim"]["name"]
    require(
        name == "adamw" or "optim.lr" in given,
        f"own.minutes derives a learning rate for adamw alone. With optim.name={name}, set optim.lr.",
    )
    return _Derivation(config, given, started, clock).run()


class _Derivation:
    """The steps of `derive`. Each adds to `fields`, the fields that were chosen, by their full names."""

    def __init__(self, config: dict[str, Any], given: frozenset[str], started: float, clock: Callable[[], float]):
        self.config, self.fields = config, Fields()
        self.given = {_ALIASES.get(name, name): _value(config, name) for name in given}
        self.minutes, self.started, self.clock = config["own"]["minutes"], started, clock
        self.has_weights = config["init"]["weights"] is not None
        self.too_large: int | None = None  # the position of the smallest size that does not fit in memory
        self.on_cpu, self.cores = measure.is_cpu(), measure.num_cores()

    def run(self) -> tuple[dict[str, Any], list[str]]:
        pipeline = Pipeline(**self.config["data"])
        self.videos, self.val_videos = (len(pipeline.manifest(part).records) for part in ("train", "val"))
        self._choose_by_data(pipeline)
        # `set_up` does so again and logs the remarks. Here, mistakes are found before minutes of measurements.
        check_training_data(pipeline, self.batch, self.config["eval"]["on_bad"] == "skip")
        sizes = self._sizes()
        self._set(**sizes[0])
        pipeline = Pipeline(**self._resolved()["data"])
        self.decoding = measure.measure_decoding(pipeline, self.config["seed"], _DECODING_SHARE * 60 * self.minutes)
        number, macs, probe = self._choose_size(sizes)
        self._set(**sizes[number])
        planned, step_seconds = self._choose_length(macs, probe)
        derived = Derived(
            self._resolved(), self.given, self.videos, self.val_videos, sided(pipeline.class_names), self.cores,
            self.decoding, probe.times, number + 1, len(sizes), self.too_large != number + 1, planned, step_seconds,
            self._left(),
        )  # fmt: skip
        return derived.config, sentences(derived)

    def _set(self, **fields) -> None:
        """Chooses values of fields, but for those that are given."""
        self.fields |= {name: value for name, value in fields.items() if name not in self.given}

    def _resolved(self, **fields) -> dict[str, Any]:
        """Returns the config with the fields chosen so far, and with further ones."""
        config = {name: dict(value) if isinstance(value, dict) else value for name, value in self.config.items()}
        for name, value in {**self.fields, **fields, **self.given}.items():
            section, _, field = name.rpartition(".")
            (config[section] if section else config)[field] = value
        for alias, name in _ALIASES.items():
            config["model"][alias.partition(".")[2]] = config["data"][name.partition(".")[2]]
        if "data.short_side" not in self.given:
            config["data"]["short_side"] = default_short_side(config["data"]["size"])
        return config

    def _left(self) -> float:
        """Returns the seconds of the minutes that have not passed."""
        return 60 * self.minutes - (self.clock() - self.started)

    def _choose_by_data(self, pipeline: Pipeline) -> None:
        """Chooses the batch, the type of numbers, and flips."""
        least, most = (4, 16) if self.on_cpu else (8, 64)
        batch = max(min(least, self.videos), min(most, 2 ** int(math.log2(max(self.videos / 3, 1)))))
        unit = num_batch_shards(make_mesh(**self.config["mesh"])) * self.config["train"]["accumulate"]
        self._set(
            **{"train.batch_size": -(-batch // unit) * unit, "model.dtype": "float32" if self.on_cpu else "bfloat16"}
        )
        self.batch = self._resolved()["train"]["batch_size"]
        self._set(**{"eval.batch_size": self.batch})
        if sided(pipeline.class_names) and not (pipeline.flip_swaps or pipeline.flip_sides):
            self._set(**{"data.flip": 0.0})

    def _sizes(self) -> list[Fields]:
        """Returns the fields of each size that comes into question, the smallest first."""
        name, weights = self.config["model"]["name"], None
        if self.has_weights:
            weights = model_of_weights(name, Init(**self.config["init"]))
            # The layer before the head of Google's ViT, and the last layer of a ViT, which MEViT replaces.
            allow = ("pre_logits", "layers") if name == "mevit" else ("pre_logits",)
            self._set(**{"init.allow": allow, "data.area": (0.4, 1.0)})
        return candidates(name, self.given, weights)

    def _costs(self, rate: float) -> Costs:
        return Costs(*self.decoding, self.cores, self.on_cpu, rate)

    def _choose_size(self, sizes: list[Fields]) -> tuple[int, float, measure.Probe]:
        """Returns the position of the chosen size, the multiply-adds of its step, and its measured step."""

        @cache
        def macs(position: int) -> float:
            return measure.training_macs(self._resolved(**sizes[position])["model"], self.batch)

        def choose(rate: float, count: int) -> int:
            """Returns the largest of the first `count` sizes that fits in the time, at a rate of multiply-adds."""
            costs = self._costs(rate)
            return largest_affordable(
                count,
                lambda i: costs.step_seconds(macs(i), self.batch, self._repeats(costs, macs(i))),
                lambda i: self._steps_needed(sizes[i]),
                _TRAINING_SHARE * self._left(),
            )

        least = macs(0) / (self.cores * _MOST_CORE_RATE if self.on_cpu else math.inf)
        if shortest(least, 0.0, 0.0) > 60 * max(self.minutes, 1.0):  # measuring would take long, and change nothing
            self._require_time(self._left(), least)
        probe, count, latest = None, len(sizes), self.started + 60 * _PROBING_SHARE * self.minutes
        chosen = choose(self.cores * _CORE_RATE if self.on_cpu else jax.device_count() * _ACCELERATOR_RATE, count)
        while True:
            fields = self._schedule(sizes[chosen], Length(self._given_steps() or _ANY_STEPS, 1, 0.0))
            config = self._resolved(**sizes[chosen], **fields)
            del probe  # frees its memory before the next one takes some
            probe = measure.probe(config, self.videos, 60 * _STEPS_SHARE * self.minutes)
            if probe is None:
                require(chosen > 0, "The smallest size of this model does not fit in memory. Set train.accumulate=2.")
                self.too_large = count = chosen
                chosen -= 1
                continue
            best = choose(macs(chosen) / probe.times.step, count)
            if best >= chosen and (best == chosen or self.clock() > latest):
                return chosen, macs(chosen), probe
            # Only smaller sizes come into question from now on where this one is too large, and so the loop ends.
            count = count if best > chosen else chosen
            chosen = best

    def _repeats(self, costs: Costs, macs: float) -> int:
        """Returns data.repeats. A length that is given in epochs would grow with it, so it then stays as it is."""
        if "data.repeats" in self.given or "train.total_epochs" in self.given:
            return self.config["data"]["repeats"]
        return costs.repeats(macs, self.batch)

    def _steps_needed(self, size: Fields) -> int:
        """Returns how many steps a model of this size needs: those that are given, or else enough to learn."""
        given = self._given_steps()
        clips = clips_needed(size.get("model.width"), self.videos, self.has_weights)
        return math.ceil(clips / self.batch) if given is None else given

    def _given_steps(self) -> int | None:
        if not TOTAL & self.given.keys():
            return None
        train = self.config["train"]
        epoch = self.videos * self.config["data"]["repeats"] / self.batch
        return duration_in_steps("train.total", train["total_steps"], train["total_epochs"], epoch)

    def _schedule(self, size: Fields, planned: Length) -> Fields:
        return schedule(planned, self.batch, size.get("model.width"), self.has_weights, self.given.keys())

    def _choose_length(self, macs: float, probe: measure.Probe) -> tuple[Length, float]:
        """Chooses the steps that fit, and what follows from them. Returns the length, and the seconds of a step."""
        costs = self._costs(macs / probe.times.step)
        repeats = self._repeats(costs, macs)
        self._set(**{"data.repeats": repeats, "data.workers": costs.workers(macs, self.batch, repeats)})
        pipeline = Pipeline(**self._resolved()["data"])
        estimate = costs.step_seconds(macs, self.batch, repeats)
        # The run compiles its step anew, since the length is a constant of the program, and the evaluation. The workers
        # start meanwhile.
        start = (3.0 if self.on_cpu else 1.5) * probe.times.start
        self._require_time(self._left() - start, estimate)
        step_seconds = probe.seconds_with_data(pipeline, min(60 * _DATA_SHARE * self.minutes, _MOST_DATA_SECONDS))
        slowdown = step_seconds / estimate
        # The forward pass of a view is a third of its training. Each view takes frames of its own.
        protocol = self.config["eval"]
        batches = math.ceil(self.val_videos / self.batch)
        evaluation = batches * max(slowdown, 1.0) * costs.step_seconds(macs / 3, self.batch, 1)
        last = (protocol["clips"] * protocol["crops"] - 1) * evaluation
        left = self._left() - start - last
        self._require_time(left, step_seconds, evaluation)
        planned = length(left, step_seconds, evaluation, margin(self.on_cpu), self._given_steps())
        self._set(**self._schedule(self.fields | self.given, planned))
        return planned, step_seconds

    def _require_time(self, left: float, step_seconds: float, evaluation: float = 0.0) -> None:
        """Raises ConfigError if not even a short run fits in the `left` seconds. A given length is kept."""
        needed = (60 * self.minutes - left + shortest(step_seconds, evaluation, margin(self.on_cpu))) / 60
        require(
            needed <= self.minutes or self._given_steps() is not None,
            f"own.minutes={self.minutes:g} is too short: with start, measurements and compilation, the shortest "
            f"training takes at least {needed:.1f} minutes on this machine. The measurements vary: set own.minutes to "
            f"{math.ceil(1.2 * needed + 0.5)} or more{self._smaller()}.",
        )

    def _smaller(self) -> str:
        """Returns advice to leave out the given fields that make a model larger, "" if there are none."""
        fields = sorted(name for name in self.given if name in _SIZE or name.startswith("model."))
        return f", or leave out {enumeration(fields, 'or')}" if fields else ""


def _value(config: dict[str, Any], name: str) -> Any:
    section, _, field = name.rpartition(".")
    return config[section][field] if section else config[field]

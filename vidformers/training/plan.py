"""The command `plan`: whether a run fits on devices, how long it takes at least, and what its input needs.

Nothing is run and no data need exist. The training step is compiled for the devices of a topology, or for those that
are here (`training.ahead`).
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from input_pipeline import Pipeline
from input_pipeline.errors import DataError
from input_pipeline.samplers import SEGMENTS
from vidformers.errors import ConfigError, require
from vidformers.models.registry import build
from vidformers.models.summary import TRAINING_OPERATIONS, summarise
from vidformers.parallel import memory
from vidformers.parallel.account import account, argument_bytes
from vidformers.parallel.peak import memory_bandwidth, peak_flops
from vidformers.parallel.topology import check_compiler, chip, is_tpu
from vidformers.progress import log, reported
from vidformers.training.ahead import Program, Request, compile_ahead, largest_clips
from vidformers.training.config import TrainConfig
from vidformers.training.optim import OptimConfig, duration_in_steps
from vidformers.training.plan_table import print_plan
from vidformers.training.setup import settings_text, smaller_settings

# Training videos by source and number of classes. Kinetics: about, from SlowFast (arXiv 1812.03982, section 4).
# Something-Something v2 and HMDB51: from their papers, see configs/. UCF101: its first training list. The clips of the
# demo: the default of `input_pipeline.motion_clips`.
DOCUMENTED_VIDEOS = {
    ("kinetics", 400): 240_000,
    ("kinetics", 600): 392_000,
    ("something", 174): 168_913,
    ("ucf101", 101): 9_537,
    ("hmdb51", 51): 3_570,
    ("motion_clips", 10): 4_000,
}
# Seconds in which one core decodes a clip: a part for the video, if it is decoded to the end, and a part for each frame
# of the clip. Measured by `python -m benchmarks.input` on 2026-11-21 with 2 workers on 2 cores of an AMD EPYC (Zen 3),
# from videos of 10 s at 340x256 in H.264, in groups of 250 frames (docs/speed.md): 23.84 clips/s of 8 uniform frames,
# and 17.27 of 64. A dense clip starts anywhere, and is decoded from the start of its group to its own end: by these
# figures 17.0 clips/s on a core for 16 frames 4 apart, and 17.3 were measured.
VIDEO_SECONDS = 0.0793
FRAME_SECONDS = 0.00057
VIDEO_FRAMES = 250
_TOLERANCE = 0.2  # of the largest number of clips; with less, a plan of MEViT-B takes more than four minutes


class Target(NamedTuple):
    """The devices of a plan. Figures are of one device, and None if they are not known.

    Attributes:
        topology: the name of a topology, or None for the devices that are here.
        memory: bytes of device memory.
        peak: bfloat16 floating-point operations per second.
        bandwidth: bytes per second to and from device memory.
        clock: cycles per second in which the compiler states its estimates.
    """

    topology: str | None
    memory: float
    peak: float | None
    bandwidth: float | None
    clock: float | None


def plan(
    config: dict,
    workdir,
    topology: str | None = None,
    estimate: str | None = None,
    largest: str | None = None,
    train_videos: str | None = None,
    decode_rate: str | None = None,
) -> dict:
    """Prints a plan of a run on one screen and, as the last line, as one JSON object. Returns this object.

    Args:
        config: the config of a run as nested dicts.
        workdir: the folder of the run. Its name is the name of the config; the folder need not exist.
        topology: one of `parallel.topology.TOPOLOGIES`; None takes the devices that are here.
        estimate: 'true' adds the compiler's estimate of the time of a step.
        largest: 'false' leaves out the search for the largest batch.
        train_videos: number of training videos. None takes that of data.root, else the documented number.
        decode_rate: clips that one core decodes per second. None takes a measured rate.

    Raises:
        ConfigError, DataError: a flag or a field of the config cannot work.
    """
    flags = {"estimate": estimate, "largest": largest}
    for flag, value in flags.items():
        require(value in (None, "true", "false"), f"--{flag}={value} must be true or false.")
    with_estimate = estimate == "true"
    require(
        not with_estimate or topology is not None and is_tpu(topology),
        "--estimate=true needs a --topology of TPUs, such as v5e:4x4. Compilers for other devices give no estimates.",
    )
    target = _target(topology, config["train"]["peak_tflops"])
    videos, origin = training_videos(config, train_videos)
    rate = clips_per_core_second(config["data"], decode_rate)
    request = Request(
        config, topology, None, until_buffers=not with_estimate, clips_per_epoch=config["data"]["repeats"] * videos
    )
    log(f"Compiling the training step for {topology or 'the devices that are here'}.")
    with reported("Compiling the training step"):
        program = compile_ahead(request)
    line = {"config": Path(workdir).name, "topology": topology, **_fit(request, program, target)}
    line |= {"largest": None if largest == "false" else largest_batches(request, program, target)}
    line |= _times(request, program, target)
    line |= (
        _recipe(request, line) | {"train_videos": videos, "train_videos_from": origin} | _decoding(config, line, rate)
    )
    print_plan(line)
    print(json.dumps(line))
    return line


def _target(topology: str | None, peak_tflops: float | None) -> Target:
    if topology is None:
        device = jax.devices()[0]
        target = Target(None, memory.bytes_available(), peak_flops(device), memory_bandwidth(device), None)
    else:
        check_compiler(topology)
        kind = chip(topology)
        # The topology is described in processes of their own. This process must look for no device.
        jax.config.update("jax_platforms", "cpu")
        target = Target(topology, kind.memory, kind.peak, kind.bandwidth, kind.clock)
    return target if peak_tflops is None else target._replace(peak=1e12 * peak_tflops)


def training_videos(config: dict, given: str | None) -> tuple[int, str]:
    """Returns the number of training videos and where it comes from: 'given', 'list' or 'documented'.

    Args:
        config: the config of a run as nested dicts.
        given: the value of --train_videos, or None.

    Raises:
        ConfigError: the number is wrong, or it is not known.
    """
    data = config["data"]
    require(
        given is None or given.isdecimal() and int(given) >= 1,
        f"--train_videos={given} must be a number of videos, at least 1.",
    )
    if given is not None:
        return int(given), "given"
    documented = DOCUMENTED_VIDEOS.get((data["source"], data["num_classes"]))
    try:
        if data["source"] != "motion_clips":  # it would render its videos
            return len(Pipeline(**data).train_manifest.records), "list"
    except DataError as error:
        if documented is None:
            raise ConfigError(f"{error} For a plan without this data, set --train_videos=N.") from error
    require(documented is not None, "The number of training videos is not known. Set --train_videos=N.")
    assert documented is not None
    return documented, "documented"


def clips_per_core_second(data: dict, given: str | None) -> float:
    """Returns the clips that one core decodes per second: as given, or as measured on videos like those of Kinetics.

    Args:
        data: the section `data` of the config.
        given: the value of --decode_rate, or None.

    Raises:
        ConfigError: the given rate is not a number above 0.
    """
    if given is None:
        span = VIDEO_FRAMES if data["sampling"] in SEGMENTS else min(data["stride"] * data["frames"], VIDEO_FRAMES)
        decoded = (1 + span / VIDEO_FRAMES) / 2  # the share of the video, on average
        return 1 / (VIDEO_SECONDS * decoded / data["repeats"] + FRAME_SECONDS * data["frames"])
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    require(0 < rate < float("inf"), f"--decode_rate={given} must be a number of clips per second, above 0.")
    return rate


def _fit(request: Request, program: Program, target: Target) -> dict[str, Any]:
    """Returns the fields that say whether the step fits, and what holds the bytes of a device."""
    train, shards = TrainConfig(**request.config["train"]), program.mesh["data"] * program.mesh["fsdp"]
    held = _held_bytes(program)
    rest = program.bytes - sum(held.values())
    return {
        "devices": shards * program.mesh["context"],
        "mesh": program.mesh,
        "batch_size": train.batch_size,
        "accumulate": train.accumulate,
        "clips": train.batch_size // shards // train.accumulate,
        "fits": program.bytes <= target.memory,
        "bytes": program.bytes,
        "memory_bytes": target.memory if target.memory < float("inf") else None,
        "bytes_by_holder": held | {"activations_and_temporaries": max(rest, 0)},
    }


def _held_bytes(program: Program) -> dict[str, int]:
    """Returns the bytes on a device of what the step takes: with the padding of its layouts, if it was compiled."""
    sizes = dict.fromkeys(("parameters", "opt_state", "ema", "batch"), 0)
    if program.text is None:
        sizes |= {name: program.arguments[name] for name in sizes}
    else:
        for name, size in argument_bytes(program.text).items():
            found = next((key for key in sizes if name.startswith((f"state.{key}", key))), None)
            if found is not None:
                sizes[found] += size
    return {
        "parameters": sizes["parameters"],
        "optimizer_state": sizes["opt_state"],
        "ema": sizes["ema"],
        "batch": sizes["batch"],
    }


def largest_batches(request: Request, program: Program, target: Target) -> list[dict[str, Any]]:
    """Returns the largest batches that fit: with the config as given, with rematerialisation, and so on.

    Each entry has the fields

    - `settings`, changed fields of the config;
    - `clips`, a number of clips on each shard in a micro-batch that fits, at most 20% below the largest;
    - `batch_size`, the clips of all shards and micro-batches;
    - `accumulate`, the smallest number of micro-batches with which the batch size of the config fits, or None.

    Args:
        request: the request of the step, with the clips of the config.
        program: its program.
        target: the devices.
    """
    config = request.config
    train, optim = TrainConfig(**config["train"]), OptimConfig(**config["optim"])
    per_shard = train.batch_size // (program.mesh["data"] * program.mesh["fsdp"])
    smaller = list(smaller_settings(train, optim, per_shard))
    candidates = [{}] + [changes for changes in smaller if config["model"]["remat"] != "full" and len(changes) == 1]
    rows: list[dict[str, Any]] = []

    def search(changes: dict[str, Any]) -> None:
        # Rematerialisation takes less memory, so the search starts with what fits without it.
        first = max([row["clips"] for row in rows], default=0)
        rows.append(_largest_batch(request, program, target, changes, first))

    for changes in candidates:
        search(changes)
    if all(row["accumulate"] is None for row in rows):
        for changes in smaller:
            if "optim.in_backward" in changes:
                search(changes)
    return rows


def _largest_batch(
    request: Request, program: Program, target: Target, changes: dict[str, Any], first: int
) -> dict[str, Any]:
    """Returns the entry of `largest_batches` for changed fields of the config.

    Args:
        request, program, target: those of `largest_batches`.
        changes: {'section.field': value}.
        first: a number of clips with which the search may start.
    """
    train = TrainConfig(**request.config["train"])
    per_shard = train.batch_size // (program.mesh["data"] * program.mesh["fsdp"])
    clips = per_shard // train.accumulate
    asked = request._replace(config=with_changes(request.config, changes), until_buffers=True)
    # The state alone is a lower bound of the bytes, from which the search extrapolates.
    known = {0: program.state_bytes} | ({} if changes else {clips: program.bytes})
    settings = f" with {settings_text(changes)}" if changes else ""

    def report(clips: int, tried: Program) -> None:
        log(f"{clips} clips on each shard{settings}: {tried.bytes / 2**30:.2f} GiB, compiled in {tried.seconds:.0f} s.")

    largest = 0
    if program.state_bytes <= target.memory:
        largest = largest_clips(asked._replace(clips=max(clips, first)), known, _TOLERANCE, report)
    return {
        "settings": changes,
        "clips": largest,
        "batch_size": largest * train.accumulate * (train.batch_size // per_shard),
        "accumulate": _micro_batches(asked, per_shard, largest, target),
    }


def _micro_batches(asked: Request, per_shard: int, largest: int, target: Target) -> int | None:
    """Returns the smallest number of micro-batches with which the batch size fits, or None if there is none.

    Args:
        asked: the request of the step.
        per_shard: clips of a step on each shard of the batch axis.
        largest: the largest number of clips that fits on a shard in a micro-batch, with `train.accumulate`.
        target: the devices.
    """
    train = TrainConfig(**asked.config["train"])
    in_backward = asked.config["optim"]["in_backward"]
    for count in range(1, per_shard + 1):
        clips = per_shard // count
        if per_shard % count or clips > largest or train.mixing is not None and train.batch_size < 2 * count:
            continue
        if count == 1 or train.accumulate > 1:
            return count
        if in_backward:
            return None
        # Micro-batches add the sum of their gradients to the bytes.
        config = with_changes(asked.config, {"train.accumulate": count})
        if compile_ahead(asked._replace(config=config, clips=clips)).bytes <= target.memory:
            return count
    return None


def with_changes(config: dict, changes: dict[str, Any]) -> dict:
    """Returns a config with changed fields.

    Args:
        config: the config as nested dicts.
        changes: {'section.field': value}.
    """
    changed = dict(config)
    for name, value in changes.items():
        section, _, field = name.partition(".")
        changed[section] = changed[section] | {field: value}
    return changed


def _times(request: Request, program: Program, target: Target) -> dict[str, Any]:
    """Returns the times of a step, in seconds, and the collectives of a step."""
    macs = summarise(partial(build, **request.config["model"])).macs_per_view
    devices = program.mesh["data"] * program.mesh["fsdp"] * program.mesh["context"]
    flops = TRAINING_OPERATIONS * macs * request.config["train"]["batch_size"] / devices
    costs = None if program.text is None else account(program.text)
    moved = None if costs is None else sum(operation.bytes for operation in costs.operations)
    products = flops / target.peak if target.peak else None
    by_bytes = moved / target.bandwidth if target.bandwidth and moved is not None else None
    estimated = costs is not None and target.clock is not None and not request.until_buffers
    return {
        "products_seconds": products,
        "bytes_seconds": by_bytes,
        "at_least_seconds": max((x for x in (products, by_bytes) if x is not None), default=None),
        "estimated_seconds": costs.cycles / target.clock if estimated else None,
        "exchanges": None if costs is None else costs.exchanges,
    }


def _recipe(request: Request, times: dict[str, Any]) -> dict[str, Any]:
    """Returns the length of the run, in steps and in hours."""
    train = TrainConfig(**request.config["train"])
    steps = duration_in_steps(
        "train.total", train.total_steps, train.total_epochs, request.clips_per_epoch / train.batch_size
    )
    if steps is None:  # refused when the step was compiled
        raise ConfigError("train.total_steps or train.total_epochs must be set, to 1 step or more.")
    hours = {
        name: None if times[f"{name}_seconds"] is None else steps * times[f"{name}_seconds"] / 3600
        for name in ("at_least", "estimated")
    }
    return {"steps": steps, "hours_at_least": hours["at_least"], "hours_estimated": hours["estimated"]}


def _decoding(config: dict, times: dict[str, Any], rate: float) -> dict[str, Any]:
    """Returns what the input must deliver: by the estimated time of a step, or at most, by the least time of a step.

    Args:
        config: the config of a run as nested dicts.
        times: the result of `_times`.
        rate: clips that one core decodes per second.
    """
    seconds = times["estimated_seconds"] or times["at_least_seconds"]
    clips = None if seconds is None else config["train"]["batch_size"] / seconds
    return {
        "decode_clips_per_second": clips,
        "decode_frames_per_second": None if clips is None else clips * config["data"]["frames"],
        "decode_clips_per_second_per_core": rate,
        "decode_cores": None if clips is None else clips / rate,
    }

"""The sentences on what `derive` chose, and why."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from input_pipeline.text import counted
from vidformers.training.own.budget import Length
from vidformers.training.own.measure import Decoding, StepTime

_MOST_NAMES = 3
_SLOW_DECODING = 0.05  # seconds of a core


class Derived(NamedTuple):
    """What was derived, and from what.

    Attributes:
        config: the config with all fields.
        given: the fields that the command line set, with their values.
        videos, val_videos: the number of training and of validation videos.
        sided: the names of the classes that a mirror changes.
        cores: cores of the machine.
        decoding, step: the measured times.
        number, sizes: the number of the size that was chosen, from 1, and how many there are.
        fits: False if the next larger size was tried and does not fit in memory.
        length: the length of the run.
        step_seconds: seconds of a step with its data.
        left: seconds that are left of `own.minutes`.
    """

    config: dict[str, Any]
    given: Mapping[str, Any]
    videos: int
    val_videos: int
    sided: tuple[str, ...]
    cores: int
    decoding: Decoding
    step: StepTime
    number: int
    sizes: int
    fits: bool
    length: Length
    step_seconds: float
    left: float


def sentences(derived: Derived) -> list[str]:
    """Returns about ten sentences."""
    config, minutes = derived.config, derived.config["own"]["minutes"]
    data, model, batch = config["data"], config["model"], config["train"]["batch_size"]
    decode, augment = map(_milliseconds, derived.decoding)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    follows = " Width, blocks and patches follow init.weights." if config["init"]["weights"] is not None else ""
    steps = derived.length.steps
    passes = steps * batch / data["repeats"] / derived.videos
    found = [
        f"Chosen for {derived.videos} training videos, {derived.val_videos} validation videos and "
        f"{data['num_classes']} classes, to end within own.minutes={minutes:g}:",
        f"- Measured: a core decodes a clip in {decode} and augments it in {augment}. A training step of {batch} clips "
        f"takes {derived.step.step:.2g} s on {devices}, and compiling it takes {derived.step.start:.0f} s.",
        f"- Model: {model['name']}, {_size_text(model)}, {model['dtype']}.{_reason(derived)}{follows}",
        f"- Clips: {data['frames']} frames of {data['size']} x {data['size']} pixels, {data['repeats']} of each "
        f"decoded video, made by {counted(data['workers'], 'worker')} on {counted(derived.cores, 'core')}.",
        f"- Batch: {batch} clips. Learning rate: {config['optim']['lr']:g} after a warm-up of "
        f"{_duration(config['optim'], 'warmup')}.",
        f"- Length: {steps:,} steps of {derived.step_seconds:.2g} s, measured with the workers, and so "
        f"{passes:,.0f} passes over the videos. Evaluation every {_duration(config['train'], 'eval_every')}.",
    ]
    if derived.sided:
        names = ", ".join(derived.sided[:_MOST_NAMES])
        more = " and others" if len(derived.sided) > _MOST_NAMES else ""
        off = "Flips are off:" if data["flip"] == 0 else f"data.flip={data['flip']:g}, and"
        found.append(f"- {off} a mirror changes the classes {names}{more}.")
    elif data["flip"] > 0:
        found.append(
            f"- Flips: clips are mirrored (data.flip={data['flip']:g}). Set data.flip=0 if a mirror changes a class."
        )
    if derived.decoding.decode > _SLOW_DECODING and derived.step_seconds > 2 * derived.step.step:
        found.append(
            "- Most of a step is decoding, since the videos are long or large. python -m input_pipeline.prepare makes "
            "copies that decode faster (docs/own-videos.md#long-or-large-videos)."
        )
    if derived.given:
        found.append(f"- Kept as given: {', '.join(sorted(derived.given))}.")
    if derived.length.seconds > derived.left:
        found.append(
            f"- Training and evaluation take about {derived.length.seconds / 60:.1f} minutes, and own.minutes="
            f"{minutes:g} leaves {max(derived.left, 0) / 60:.1f}. Raise own.minutes for a training that fits."
        )
    return found


def _reason(derived: Derived) -> str:
    """Returns the sentence on the choice among the sizes, "" if the given fields leave one."""
    if derived.sizes == 1:
        return ""
    reason = ""
    if derived.number < derived.sizes:
        reason = f": larger ones {'see too few clips in the time' if derived.fits else 'do not fit in memory'}"
    return f" It is number {derived.number} of {derived.sizes} sizes{reason}."


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds >= 1e-4 else "less than 0.1 ms"


def _duration(section: Mapping[str, Any], name: str) -> str:
    steps, epochs = section[f"{name}_steps"], section[f"{name}_epochs"]
    return f"{epochs:g} epochs" if steps is None else f"{steps:,} steps"


def _size_text(model: Mapping[str, Any]) -> str:
    if model["width"] is None:
        return f"size {model['size']}"
    frames = f" and {model['patch_frames']} frames" if model.get("patch_frames", 1) > 1 else ""
    return (
        f"{model['width']} wide, {model['heads']} heads, {model['depth']} blocks, patches of {model['patch_size']} x "
        f"{model['patch_size']} pixels{frames}"
    )

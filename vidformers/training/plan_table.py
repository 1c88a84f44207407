"""The table of a plan (`training.plan`)."""

from collections.abc import Iterator
from typing import Any

from vidformers.progress import table
from vidformers.training.setup import settings_text

_HOLDERS = {
    "parameters": "parameters",
    "optimizer_state": "optimizer state",
    "ema": "EMA",
    "batch": "batch",
    "activations_and_temporaries": "activations, temporaries",
}
_ORIGINS = {
    "given": "as given",
    "list": "in the list",
    "documented": "documented",
}


def print_plan(line: dict[str, Any]) -> None:
    """Prints a plan as a table that fits on one screen.

    Args:
        line: the result of `plan.plan`.
    """
    devices = line["topology"] or "the devices that are here"
    mesh = ", ".join(f"{axis}={size}" for axis, size in line["mesh"].items())
    table(f"{line['config']} on {devices}, mesh {mesh}", list(_rows(line)))


def _rows(line: dict[str, Any]) -> Iterator[tuple[str, str]]:
    batch = f"{line['batch_size']:,} clips, {line['clips']:,} on each shard"
    yield "step", batch + (f" in each of {line['accumulate']} micro-batches" if line["accumulate"] > 1 else "")
    yield "fits", _fits(line)
    for name, size in line["bytes_by_holder"].items():
        yield f"  {_HOLDERS[name]}", _size(size) if size else "none"
    for row in line["largest"] or ():
        yield f"  {settings_text(row['settings'])}" if row["settings"] else "largest batch", _largest(line, row)
    yield "time of a step", _step_time(line)
    if line["estimated_seconds"] is not None:
        yield (
            "  estimate",
            (f"{_milliseconds(line['estimated_seconds'])} by the compiler, not measured; exchanges are not in it"),
        )
    yield "run", _run(line)
    yield "input", _input(line)
    if line["exchanges"] is not None:
        parts = [f"{kind}: {x['count']:,} x, {_size(x['bytes'])}" for kind, x in line["exchanges"].items()]
        yield "exchanged in a step", "; ".join(parts) or "nothing"


def _fits(line: dict[str, Any]) -> str:
    needed = _size(line["bytes"])
    if line["memory_bytes"] is None:
        return f"not known: {needed} on each device, whose memory is not known"
    return f"{'yes' if line['fits'] else 'NO'}: {needed} of {_size(line['memory_bytes'])} on each device"


def _largest(line: dict[str, Any], row: dict[str, Any]) -> str:
    if not row["clips"]:
        return "none fits"
    micro = " in a micro-batch" if line["accumulate"] > 1 else ""
    text = f"{row['clips']:,} clips on each shard{micro}, {row['batch_size']:,} in a step"
    if row["accumulate"] is None:
        return f"{text}; {line['batch_size']:,} clips do not fit"
    if row["accumulate"] != line["accumulate"]:
        text += f"; {line['batch_size']:,} clips fit with train.accumulate={row['accumulate']}"
    return text


def _step_time(line: dict[str, Any]) -> str:
    if line["at_least_seconds"] is None:
        return "not known: the peak of these devices is not known. Set train.peak_tflops."
    bounds = {
        "products at the bfloat16 peak": line["products_seconds"],
        "bytes at the memory bandwidth": line["bytes_seconds"],
    }
    parts = [f"{name} {_milliseconds(seconds)}" for name, seconds in bounds.items() if seconds is not None]
    return f"at least {_milliseconds(line['at_least_seconds'])}; lower bounds: {', '.join(parts)}"


def _run(line: dict[str, Any]) -> str:
    text = f"{line['steps']:,} steps"
    if line["hours_estimated"] is not None:
        text += f", {_duration(line['hours_estimated'])} by the estimate"
    elif line["hours_at_least"] is not None:
        text += f", at least {_duration(line['hours_at_least'])}"
    return f"{text}, without evaluations; {line['train_videos']:,} videos ({_ORIGINS[line['train_videos_from']]})"


def _input(line: dict[str, Any]) -> str:
    assumed = f"{line['decode_clips_per_second_per_core']:.1f} clips/s on each core (assumed; --decode_rate)"
    if line["decode_cores"] is None:
        return f"not known without the time of a step; {assumed}"
    most = "" if line["estimated_seconds"] is not None else "at most "
    return (
        f"{most}{line['decode_frames_per_second']:,.0f} frames/s to decode, {line['decode_clips_per_second']:,.0f} "
        f"clips/s: {line['decode_cores']:,.0f} cores on all hosts at {assumed}"
    )


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"

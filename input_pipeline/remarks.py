"""Checks of data before a run: files and settings that are sure to fail later, and remarks on those that mislead.

The lists of the pipeline are read, and the status of files, but no video.
"""

import collections
import math
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.annotations import Manifest, Record, relative_path
from input_pipeline.balance import class_counts
from input_pipeline.copies import copies
from input_pipeline.drawn_split import items, suggested_group
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.fields import shown
from input_pipeline.labels import ONE
from input_pipeline.pipeline import Pipeline
from input_pipeline.sources.something import mirrored
from input_pipeline.text import folded
from input_pipeline.video_part import NoSuchPart, read_head
from input_pipeline.videos import open_video

_THREADS, _CHUNK = 16, 1000  # a network disk answers slowly, but many questions at once
_FEW_VIDEOS, _MAX_NAMED = 10, 10  # videos of a rare class, and classes that are named
_SHORT_SECONDS = 0.25  # of a part that may lie between two frames
_MIN_SHARE = 0.5  # of the shorter side of a frame that a crop shows


def check_training_data(pipeline: Pipeline, batch_size: int, skips_bad: bool) -> list[str]:
    """Refuses data with which a training run is sure to fail, and returns remarks for the user.

    Args:
        batch_size: clips of a step.
        skips_bad: whether evaluations leave out videos that cannot be decoded (eval.on_bad=skip).

    Raises:
        DataError: own data have one class, data.exclude names no video, more training videos are empty files than
            data.max_bad_fraction allows, or a validation video is an empty file and `skips_bad` is False.
    """
    train, val = pipeline.train_manifest, pipeline.val_manifest
    if pipeline.source == "auto" and pipeline.num_classes == 1 and pipeline.labels == ONE:
        raise DataError(
            f"{train.path}: all videos have the class {shown(pipeline.class_names[0])}. A classifier needs two classes "
            "or more: add videos of another class, such as videos that show something else."
        )
    unmatched = unmatched_lines(pipeline)
    train_status, val_status = file_status(train.records), file_status(val.records)
    empty = _empty_files(train, train_status)
    if len(empty) > max_bad_videos(len(train.records), pipeline.max_bad_fraction):
        raise DataError(
            f"{_empty_sentence(empty, train)}, more than data.max_bad_fraction={pipeline.max_bad_fraction} allows. "
            "Copy them again, or leave them out with data.exclude."
        )
    empty_val = _require_content(val, val_status, skips_bad)
    slow = [path for manifest in (train, val) for path in _require_parts(pipeline, manifest)]
    found = [*_crop_remarks(pipeline), *flip_remarks(pipeline)]
    found += [unmatched_sentence(unmatched)] if unmatched else []
    if slow:
        found.append(
            f"{len(slow)} videos with labelled parts, such as {slow[0]}, cannot be seeked in, and each clip decodes "
            "them from their beginning. Copy them into MP4 once: ffmpeg -i OLD -c copy NEW.mp4."
        )
    if len(train.records) < batch_size // pipeline.repeats:
        found.append(
            f"train.batch_size={batch_size} is larger than the data: a step sees each of the {len(train.records)} "
            f"training videos more than once. Set train.batch_size to at most {len(train.records) * pipeline.repeats}."
        )
    found += [f"{_empty_sentence(*pair)}. They are left out." for pair in ((empty, train), (empty_val, val)) if pair[0]]
    shared = _shared(train.records, train_status, val.records, val_status)
    if shared:
        found.append(
            f"{len(shared)} of {len(val.records)} videos of {val.path} are also in {train.path}, for example "
            f"{shared[0].name}: the evaluation counts videos that are trained on."
        )
    if pipeline.parts.layout is not None:
        found += _copy_remarks(pipeline, copies(train.records + val.records, train_status + val_status))
    return found


def check_evaluated_data(pipeline: Pipeline, skips_bad: bool, part: str = "val") -> None:
    """Refuses data with which an evaluation of a part is sure to fail.

    Raises:
        DataError: a video is an empty file, or is shorter than its part in the list says, and `skips_bad` is False.
    """
    manifest = pipeline.manifest(part)
    _require_content(manifest, file_status(manifest.records), skips_bad)
    if not skips_bad:
        _require_parts(pipeline, manifest)


def max_bad_videos(videos: int, max_bad_fraction: float) -> int:
    """Returns how many training videos of a pass may be undecodable: at least one, unless the fraction is 0.

    In a small data set, one video is a larger share than the default fraction. One video must be left to train on.
    """
    if max_bad_fraction == 0:
        return 0
    return min(max(int(max_bad_fraction * videos), 1), videos - 1)


def file_status(records: Sequence[Record]) -> list[os.stat_result | None]:
    """Returns the status of the file or folder of each record, links followed, or None if there is none."""

    def statuses(start: int):
        return [_status(record.path) for record in records[start : start + _CHUNK]]

    with ThreadPoolExecutor(_THREADS) as pool:
        return [status for chunk in pool.map(statuses, range(0, len(records), _CHUNK)) for status in chunk]


def _status(path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _empty_files(manifest: Manifest, statuses: Sequence[os.stat_result | None]) -> list[str]:
    return [
        record.path
        for record, status in zip(manifest.records, statuses, strict=True)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size == 0
    ]


def _require_content(val: Manifest, statuses: Sequence[os.stat_result | None], skips_bad: bool) -> list[str]:
    """Returns the validation videos that are empty files, which are refused unless `skips_bad`."""
    empty = _empty_files(val, statuses)
    if empty and not skips_bad:
        raise DataError(
            f"{_empty_sentence(empty, val)} and cannot be evaluated. Copy them again, leave them out with "
            "data.exclude, or set eval.on_bad=skip."
        )
    return empty


def _require_parts(pipeline: Pipeline, manifest: Manifest) -> list[str]:
    """Raises DataError for a part that its video does not hold. Only videos that seem to be too short are opened.

    Returns:
        The paths of the videos with parts that cannot be found by seeking.
    """
    paths = list(dict.fromkeys(record.path for record in manifest.records if record.is_part))
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = dict(zip(paths, pool.map(read_head, paths), strict=True))
    for record in (record for record in manifest.records if record.is_part):
        start, end = record.start or 0.0, record.end or math.inf
        seconds = heads[record.path].seconds
        if end - start >= _SHORT_SECONDS and start < seconds and (record.end is None or end <= seconds):
            continue
        try:
            open_video(record, frame_rate=pipeline.frame_rate, limit_seconds=pipeline.limit_seconds)
        except NoSuchPart as error:
            raise DataError(f"{manifest.path} line {record.line}: {error}") from None
        except DecodeError:
            pass  # the file is broken, which `check` and the run say
    return [path for path, head in heads.items() if not head.is_indexed]


def _empty_sentence(paths: Sequence[str], manifest: Manifest) -> str:
    return f"{len(paths)} of {len(manifest.records)} videos of {manifest.path} are empty files, for example {paths[0]}"


def _shared(train: Sequence[Record], train_status, val: Sequence[Record], val_status) -> list[Record]:
    """Returns the validation videos that are training videos, too, whatever the path, or parts that overlap."""
    spans: dict[tuple, list[tuple[float, float]]] = collections.defaultdict(list)
    for record, status in zip(train, train_status, strict=True):
        if status is not None:
            spans[_file(record, status)].append(_span(record))
    bounds = {file: np.array(times).T for file, times in spans.items()}
    shared = []
    for record, status in zip(val, val_status, strict=True):
        if status is not None and (found := bounds.get(_file(record, status))) is not None:
            start, end = _span(record)
            if ((found[0] < end) & (found[1] > start)).any():
                shared.append(record)
    return shared


def _file(record: Record, status: os.stat_result) -> tuple:
    """Returns what identifies the file or the row of a record, whatever the path to it."""
    return status.st_dev, status.st_ino, record.position


def _span(record: Record) -> tuple[float, float]:
    return record.start or 0.0, math.inf if record.end is None else record.end


def _copy_remarks(pipeline: Pipeline, pairs: list[tuple[Record, Record]]) -> Iterator[str]:
    """Yields a sentence about videos that are copies of others, those in two classes first."""
    pairs = sorted(pairs, key=lambda pair: pair[0].class_numbers == pair[1].class_numbers)
    if pairs:
        names = pipeline.class_names
        first, second = (
            f"{relative_path(record, pipeline.root)} ({', '.join(names[n] for n in record.class_numbers)})"
            for record in pairs[0]
        )
        yield (
            f"{len(pairs)} videos have the same content as another, for example {second} as {first}. Remove one of "
            "each: a copy in another class contradicts its label, and one in the other part makes the evaluation too "
            "good."
        )


def unmatched_lines(pipeline: Pipeline) -> list[str]:
    """Returns the lines of data.exclude that name no video of either list.

    Raises:
        DataError: no line names a video.
    """
    train, val = pipeline.train_manifest, pipeline.val_manifest
    of_val = set(val.unmatched)
    lines = [line for line in train.unmatched if line in of_val]
    if lines and not train.excluded and not val.excluded:
        raise DataError(
            f"data.exclude={pipeline.exclude} names no video of {train.path} or {val.path}. Its lines must be paths "
            f"relative to data.root={pipeline.root}; the first is {shown(lines[0])}. Correct them, or leave out "
            "data.exclude."
        )
    return lines


def unmatched_sentence(lines: Sequence[str]) -> str:
    """Returns the remark on lines of data.exclude that name no video."""
    return f"{len(lines)} lines of data.exclude name no video, for example {shown(lines[0])}."


def flip_remarks(pipeline: Pipeline) -> Iterator[str]:
    """Yields sentences about classes that a mirror turns into each other."""
    names, swaps = pipeline.class_names, pipeline.flip_map
    pairs = mirrored(names)
    if pipeline.flip_sides and not pairs:
        yield "data.flip_sides=True swaps no labels: no two class names differ only in left and right."
    number_of = {name: number for number, name in enumerate(names)}
    unswapped = [pair for pair in pairs if number_of[pair[0]] not in swaps]
    if pipeline.flip > 0 and unswapped:
        first, second = unswapped[0]
        yield (
            f"data.flip={pipeline.flip} mirrors clips and keeps their labels, but class names differ only in left and "
            f"right, such as {shown(first)} and {shown(second)} (pairs of classes: {len(unswapped)}). Set "
            "data.flip_sides=True to swap these labels, or data.flip=0.0."
        )


def layout_remarks(pipeline: Pipeline) -> Iterator[str]:
    """Yields sentences about the layout of own data, and about a validation part that is drawn."""
    parts = pipeline.parts
    if parts.layout is None:
        return
    if parts.layout.remark:
        yield parts.layout.remark
    if not parts.is_drawn:
        if pipeline.group is not None and pipeline.val is None:
            yield f"data.group has no effect: the validation part is {parts.layout.val}, and none is drawn."
        return
    train, val = (pipeline.manifest(part) for part in ("train", "val"))
    verb = "is" if len(val.records) == 1 else "are"
    beside = "" if os.path.samefile(train.path, pipeline.root) else " beside it"
    yield (
        f"{train.path} has no validation part{beside}. {len(val.records)} of its "
        f"{len(train.records) + len(val.records)} videos {verb} drawn for validation, a fifth of each class "
        f"and at least one (data.val_seed={pipeline.val_seed})."
    )
    counts = class_counts(val.records, pipeline.num_classes)
    if without := [pipeline.class_names[number] for number in np.flatnonzero(counts == 0)]:
        yield (
            f"Classes without a validation video, as all their videos are of one group or there is a single one: "
            f"{_named(without)}."
        )
    group = suggested_group(items(parts.listed, pipeline.root)) if pipeline.group is None else None
    if group is not None:
        yield (
            "Names of files show groups, such as clips cut from one video. If they do, videos of one group are now "
            f"in both parts. {shlex.quote(f'--config.data.group={group}')} keeps each group in one part."
        )


def class_remarks(pipeline: Pipeline) -> Iterator[str]:
    """Yields sentences about training clips without labels, classes with nearly the same name, or with few clips."""
    records = pipeline.train_manifest.records
    without = sum(record.labels == () for record in records)
    if without:
        yield (
            f"{without} of {len(records)} training videos have no label. With data.labels=many they count as videos "
            "that show none of the classes."
        )
    forms: dict[str, str] = {}
    for name in pipeline.class_names:
        if (other := forms.setdefault(folded(name), name)) != name:
            yield (
                f"The classes {shown(other)} and {shown(name)} differ only in upper and lower case, or in how accents "
                "are stored. They are trained as two classes; rename one if they are the same."
            )
    counts = class_counts(records, pipeline.num_classes)
    few = [number for number in np.argsort(counts, kind="stable") if counts[number] < _FEW_VIDEOS]
    if not few:
        return
    names = _named([f"{pipeline.class_names[number]} {counts[number]}" for number in few])
    advice = ""
    if counts.max() >= 2 * counts.min() and not pipeline.balance:
        advice = " data.balance=1.0 draws rare classes as often as others, train.class_weights=1.0 weighs them more."
    yield f"Classes with fewer than {_FEW_VIDEOS} training videos: {names}.{advice}"


def _named(names: Sequence[str]) -> str:
    """Returns some names in a line, without most of very many."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _crop_remarks(pipeline: Pipeline) -> Iterator[str]:
    """Yields sentences about crops that show a small part of a frame."""
    sides = {"test_short_side": pipeline.test_short_side or pipeline.size}
    if pipeline.crop == "jitter":
        sides["short_side"] = pipeline.short_side[0]
    for field, side in sides.items():
        if pipeline.size < _MIN_SHARE * side:
            yield (
                f"data.size={pipeline.size} is far below data.{field}={getattr(pipeline, field)}: a crop shows at most "
                f"{pipeline.size / side:.0%} of the shorter side of a frame."
            )

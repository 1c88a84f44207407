"""Transcodes a data set into shards: python -m input_pipeline.prepare --config=FILE --out=DIR."""

import collections
import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline import beam, shard_plan, transcode
from input_pipeline.commands import command, run_program
from input_pipeline.errors import DataError
from input_pipeline.outputs import locked, output_folder
from input_pipeline.text import print_line
from input_pipeline.workers import decoding_pool

USAGE = """python -m input_pipeline.prepare --config=FILE[:NAME] [--config.data.field=value ...] --out=DIR
    [--short_side=256] [--gop=4] [--crf=23] [--clips_per_shard=256] [--workers=2]
    [--shard=i/n] [--merge=true] [--runner=local] [--runner_flags='--flag=value ...']

Transcodes the training, validation and test videos of a config into shards of short clips that decode fast. Train on
them with data.source=shards, data.root=DIR. The same command continues a run that was stopped. Videos that cannot be
decoded are listed in DIR/excluded.csv.

--short_side  length in pixels that the shorter side is scaled down to
--gop         frames in a group of pictures: 4 is fast for sparse frames, 12 takes less disk space
--crf         x264's constant rate factor: lower is better quality and larger files
--shard       i/n writes only the shards i, i + n, i + 2n, ..., with i from 0. When all are written, run the command
              once with --merge=true instead, which writes the lists
--runner      an Apache Beam runner instead of processes on this machine: DirectRunner, DataflowRunner, FlinkRunner or
              SparkRunner, with its own flags. All workers must see the videos and DIR under the same paths"""

FLAGS = {
    "out": None,
    "short_side": "256",
    "gop": "4",
    "crf": "23",
    "clips_per_shard": "256",
    "workers": "2",
    "shard": None,
    "merge": "false",
    "runner": "local",
    "runner_flags": "",
}
_MAX_LISTED_VIDEOS = 5  # videos with remarks that are printed
RUNNERS = ("local", "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


@command(USAGE)
def main(argv):
    from configs.loading import count_classes, read_flags, require

    config, flags = read_flags(argv, FLAGS)
    out, runner = flags["out"], flags["runner"]
    require(bool(out), "--out=DIR is missing; --help shows how to write it.")
    require(flags["merge"] in ("true", "false"), f"--merge={flags['merge']} must be true or false.")
    require(runner in RUNNERS, f"--runner={runner} must be one of {', '.join(RUNNERS)}.")
    require(
        flags["shard"] is None or (flags["merge"] == "false" and runner == "local"),
        "--shard=i/n cannot be combined with --merge=true or with a --runner other than local.",
    )
    workers = _integer(flags, "workers")
    require(workers > 0, f"--workers={workers} must be at least 1.")
    count_classes(config)
    options = {
        "data": config.data.to_dict(),
        "encoding": {name: _integer(flags, name) for name in ("short_side", "gop", "crf")},
        "clips_per_shard": _integer(flags, "clips_per_shard"),
    }
    index, count = _job_slice(flags["shard"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(output_folder(out, "out", shared=flags["shard"] is not None))
        if flags["shard"] is not None:
            taken = f"--shard={flags['shard']} of --out={out} is being written by another command. Wait until it ends."
            stack.enter_context(locked(Path(out) / f".shard-{index}-of-{count}.lock", taken))
        _prepare(options, flags, index, count, workers)


def _prepare(options, flags, index, count, workers):
    """Writes the shards `index`, `index + count`, ... and, without --shard, the lists."""
    out, runner = flags["out"], flags["runner"]
    plan = shard_plan.make_plan(**options)
    shard_plan.claim_folder(out, plan.options)
    if flags["merge"] == "false":
        jobs = shard_plan.unfinished_jobs(out, plan.jobs[index::count])
        if runner == "local":
            run_jobs(out, jobs, workers)
        else:
            beam.run_jobs(out, jobs, runner, flags["runner_flags"], workers, **options)
    if flags["shard"] is not None:
        missing = len(shard_plan.unfinished_jobs(out, plan.jobs))
        print_line(
            f"{out}: the shards of --shard={flags['shard']} are written; {missing} of {len(plan.jobs)} are missing. "
            "When all are written, run the command with --merge=true to write the lists."
        )
        return
    summary = shard_plan.merge(out, plan)
    for lock in Path(out).glob(".shard-*.lock"):  # of parts that were killed: no part runs now
        lock.unlink()
    for split in plan.splits:
        print_line(_summary_line(split, summary[split], out))
        noted = summary[split]["remarks"]
        for path, text in noted[:_MAX_LISTED_VIDEOS]:
            print_line(f"  {path}: {text}")
        if len(noted) > _MAX_LISTED_VIDEOS:
            print_line(f"  {len(noted) - _MAX_LISTED_VIDEOS} more videos have remarks, see {out}/summary.json.")
    empty = [split for split in plan.splits if not summary[split]["clips"]]
    if empty:
        raise DataError(f"No video of data.{empty[0]} could be decoded. {out}/excluded.csv gives the reasons.")


def _summary_line(split, numbers, out):
    return (
        f"{split}: {numbers['clips']} clips of {numbers['frames']} frames, "
        f"{numbers['source_bytes'] / 1e6:.1f} MB before and {numbers['bytes'] / 1e6:.1f} MB after; "
        f"{numbers['excluded']} videos left out" + (f", see {out}/excluded.csv" if numbers["excluded"] else "")
    )


def _integer(flags, name):
    from configs.loading import require

    require(flags[name].isdecimal(), f"--{name}={flags[name]} must be a whole number.")
    return int(flags[name])


def _job_slice(text):
    """Returns i and n of the value 'i/n' of --shard."""
    from configs.loading import require

    index, _, count = (text or "0/1").partition("/")
    require(
        index.isdecimal() and count.isdecimal() and int(index) < int(count),
        f"--shard={text} must be i/n with i from 0 to n - 1.",
    )
    return int(index), int(count)


def run_jobs(out: str, jobs: list[shard_plan.ShardJob], workers: int) -> None:
    """Writes the shards of `jobs` into the folder `out` with `workers` processes, and shows the progress.

    Raises:
        OSError: a shard cannot be written.
    """
    tasks = [task for job in jobs for task in job.tasks]
    if not tasks:
        return
    start, console = time.monotonic(), Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.1f} clips/s"),
        TimeRemainingColumn(),
    )
    with (
        contextlib.closing(_results(tasks, workers)) as results,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("Preparing", total=len(tasks), speed=0.0)

        def with_progress():
            for done, result in enumerate(results, start=1):
                progress.update(bar, completed=done, speed=done / (time.monotonic() - start))
                yield result

        stream = with_progress()
        for job in jobs:
            shard_plan.run_job(out, job, itertools.islice(stream, len(job.tasks)))
    seconds = time.monotonic() - start
    print_line(f"Prepared {len(tasks)} videos in {seconds:.0f} s, {len(tasks) / seconds:.1f} clips/s.")


def _results(tasks: Iterable[transcode.Task], workers: int) -> Iterator[tuple[dict, bytes | None]]:
    """Yields `transcode.run` of each task, in order. A video that crashes its decoding process gives no clip."""
    tasks, waiting = iter(tasks), collections.deque()
    while True:
        try:
            with decoding_pool(workers) as pool:
                yield from _pool_results(pool, workers, tasks, waiting)
            return
        except BrokenProcessPool:
            # A process has ended while it decoded one of these videos. The pool has then lost all their results.
            task, _ = waiting.popleft()
            waiting = collections.deque([task, None] for task, _ in waiting)
        yield _run_alone(task)


def _pool_results(pool, workers, tasks, waiting):
    """Yields the results of a pool in order. `waiting` holds [task, future or None] of the tasks that come next."""
    while True:
        # Enough tasks are submitted to keep the other processes busy during one long video.
        waiting.extend([task, None] for task in itertools.islice(tasks, 8 * workers - len(waiting)))
        if not waiting:
            return
        for entry in waiting:
            entry[1] = entry[1] or pool.submit(transcode.run, entry[0])
        result = waiting[0][1].result()
        waiting.popleft()
        yield result


def _run_alone(task):
    with decoding_pool(1) as pool:
        try:
            return pool.submit(transcode.run, task).result()
        except BrokenProcessPool:
            return transcode.failed(task, "The process that decoded the video ended."), None


if __name__ == "__main__":
    run_program(main)

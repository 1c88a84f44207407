"""Transcodes a data set into shards: python -m input_pipeline.prepare --config=FILE --out=DIR."""

import collections
import contextlib
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from input_pipeline import shard_plan as pieces
from input_pipeline import transcode
from input_pipeline.commands import command, end
from input_pipeline.workers import start_pool_process

USAGE = """python -m input_pipeline.prepare --config=FILE[:MODEL] [--config.data.field=value ...] --out=DIR
    [--short_side=256] [--gop=4] [--crf=23] [--clips_per_shard=256] [--workers=2]
    [--shard=i/n] [--merge=true] [--runner=local] [--runner_flags='--flag=value ...']

Transcodes the training and validation videos of a config into shards of short clips that decode fast, which
data.source=shards, data.root=DIR reads. A run that was stopped goes on when given again. Videos that cannot be decoded
are listed in DIR/excluded.csv.

--short_side  pixels that the shorter side is scaled down to
--gop         frames of a group of pictures: 4 is fast for sparse frames, 12 takes less disk
--crf         x264's constant quality; lower is better and larger
--shard       i/n prepares the pieces i, i + n, i + 2n, ... alone, i from 0; --merge=true, alone, ends with the lists
--runner      an Apache Beam runner instead of processes of this machine: DirectRunner, DataflowRunner, FlinkRunner or
              SparkRunner, with its own flags; all its workers must see the videos and DIR under the same paths"""

OWN = {
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
RUNNERS = ("local", "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


@command(USAGE)
def main(argv):
    from configs.sheet import read_flags, require

    config, flags = read_flags(argv, OWN)
    out, runner = flags["out"], flags["runner"]
    require(bool(out), "--out=DIR is missing; --help shows how to write it.")
    require(flags["merge"] in ("true", "false"), f"--merge={flags['merge']} must be true or false.")
    require(runner in RUNNERS, f"--runner={runner} must be one of {', '.join(RUNNERS)}.")
    require(
        flags["shard"] is None or (flags["merge"] == "false" and runner == "local"),
        "--shard=i/n goes neither with --merge=true nor with another --runner.",
    )
    workers = _whole(flags, "workers")
    require(workers > 0, f"--workers={workers} must be at least 1.")
    data = config.data.to_dict()
    encoding = {name: _whole(flags, name) for name in ("short_side", "gop", "crf")}
    plan = make_plan(data, encoding, _whole(flags, "clips_per_shard"))
    part, parts = _part(flags["shard"])
    pieces.claim(out, plan.options)
    todo = [] if flags["merge"] == "true" else pieces.unfinished(out, plan.jobs[part::parts])
    if runner == "local":
        prepare(out, todo, workers)
    else:
        from input_pipeline import beam

        beam.prepare(
            out,
            [(piece.split, piece.index) for piece in todo],
            runner,
            flags["runner_flags"],
            workers,
            data=data,
            encoding=encoding,
            clips_per_shard=plan.options["clips_per_shard"],
        )
    if flags["shard"] is not None:
        print(
            f"{out}: the pieces of --shard={flags['shard']} are there; "
            f"{len(pieces.unfinished(out, plan.pieces))} of {len(plan.pieces)} are missing. "
            "When none is, --merge=true ends with the lists."
        )
        return
    for split, numbers in list(pieces.merge(out, plan).items())[1:]:
        print(
            f"{split}: {numbers['clips']} clips of {numbers['frames']} frames, "
            f"{numbers['source_bytes'] / 1e6:.1f} MB before and {numbers['bytes'] / 1e6:.1f} MB after; "
            f"{numbers['excluded']} videos left out" + (f", see {out}/excluded.csv" if numbers["excluded"] else "")
        )


def make_plan(data: dict, encoding: dict, clips_per_shard: int) -> pieces.Plan:
    """The plan of a config's section `data`, see `pieces.plan`."""
    from input_pipeline import Pipeline

    return pieces.plan(Pipeline(**data), transcode.Encoding(**encoding), clips_per_shard)


def _whole(flags, name):
    from configs.sheet import require

    require(flags[name].isdecimal(), f"--{name}={flags[name]} must be a whole number.")
    return int(flags[name])


def _part(text):
    from configs.sheet import require

    part, slash, parts = (text or "0/1").partition("/")
    require(
        part.isdecimal() and parts.isdecimal() and int(part) < int(parts),
        f"--shard={text} must be i/n with i from 0 to n - 1.",
    )
    return int(part), int(parts)


def prepare(out, todo: list[pieces.ShardJob], workers: int):
    """Writes the pieces `todo` into the folder `out` with so many processes, and shows how it goes.

    Raises:
      OSError: a piece cannot be written.
    """
    tasks = [task for piece in todo for task in piece.tasks]
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

        def shown():
            for done, result in enumerate(results, start=1):
                progress.update(bar, completed=done, speed=done / (time.monotonic() - start))
                yield result

        stream = shown()
        for piece in todo:
            pieces.write(out, piece, itertools.islice(stream, len(piece.tasks)))
    seconds = time.monotonic() - start
    print(f"Prepared {len(tasks)} videos in {seconds:.0f} s, {len(tasks) / seconds:.1f} clips/s.")


def _results(tasks: Iterable[transcode.Task], workers: int) -> Iterator[tuple[dict, bytes | None]]:
    """`transcode.run` of each task, in order. A video that ends the process that decodes it gives no clip."""
    tasks, waiting, pool = iter(tasks), collections.deque(), _pool(workers)
    try:
        while True:
            # Enough of them that the others need not wait for one long video.
            waiting.extend([task, None] for task in itertools.islice(tasks, 8 * workers - len(waiting)))
            if not waiting:
                return
            try:
                for entry in waiting:
                    entry[1] = entry[1] or pool.submit(transcode.run, entry[0])
                result = waiting[0][1].result()
            except BrokenProcessPool:
                # One of the videos at work has ended its process, and all that waited are lost with it.
                pool.shutdown()
                pool = _pool(workers)
                result = _alone(waiting[0][0])
                for entry in waiting:
                    entry[1] = None
            waiting.popleft()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(task):
    with _pool(1) as pool:
        try:
            return pool.submit(transcode.run, task).result()
        except BrokenProcessPool:
            return transcode.failed(task, "The process that decoded the video ended."), None


def _pool(workers):
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_pool_process)


if __name__ == "__main__":
    end(main(sys.argv[1:]))

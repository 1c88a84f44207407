"""Writes shards with an Apache Beam pipeline, for clusters with a Beam runner. See `prepare`.

An element of the pipeline is one job. Beam may give an element to several workers, or to the same worker again. This is
harmless: a complete shard replaces an older one by a rename, and its bytes depend only on the lists and the options.
"""

import functools
import json
import shlex

from input_pipeline import shard_plan, transcode
from input_pipeline.errors import DataError


def run_jobs(out: str, jobs: list[shard_plan.ShardJob], runner: str, flags: str, workers: int, **options) -> None:
    """Writes the shards of `jobs` into the folder `out`.

    Args:
        out: folder, under the same path on all workers.
        jobs: jobs of the plan that `options` gives.
        runner: name of a Beam runner.
        flags: flags of the runner, as on a command line.
        workers: processes of the DirectRunner. The other runners have flags for this number.
        **options: arguments of `shard_plan.make_plan`.

    Raises:
        DataError: Apache Beam is not installed, or the pipeline fails.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError(
            f"--runner={runner} needs Apache Beam: pip install -r requirements.txt "
            "-r requirements-beam.txt -c constraints-beam.txt."
        ) from None
    arguments = [f"--runner={runner}", *shlex.split(flags)]
    if runner == "DirectRunner":
        arguments += [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    keys, settings = [(job.split, job.index) for job in jobs], json.dumps(options)
    try:
        with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            (
                pipeline
                | "create jobs" >> apache_beam.Create(keys)
                | "distribute" >> apache_beam.Reshuffle()
                | "transcode and write" >> apache_beam.MapTuple(functools.partial(_run_job, out, settings))
            )
    except RuntimeError as error:
        raise DataError(f"--runner={runner}: the pipeline failed: {str(error).strip().splitlines()[-1]}") from error


def _run_job(out, settings, split, index):
    (job,) = (job for job in _plan(settings).jobs if (job.split, job.index) == (split, index))
    shard_plan.run_job(out, job, map(transcode.run, job.tasks))


@functools.lru_cache(maxsize=1)
def _plan(settings):
    return shard_plan.make_plan(**json.loads(settings))

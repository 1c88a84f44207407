"""Preparing shards as an Apache Beam pipeline, for clusters that run one: see `prepare`.

An element is a piece. Beam may give an element to several workers, or to one again; as a piece is renamed whole
and its bytes follow from the lists and the options, neither shows.
"""

import functools
import json
import shlex

from input_pipeline.errors import DataError


def prepare(out, todo, runner, flags, workers, **options):
    """Writes the pieces `todo`, pairs (split, index), into the folder `out`.

    Args:
      runner: name of a Beam runner.
      flags: of the runner, as on a command line.
      workers: processes of the DirectRunner; the others have flags for it.
      options: arguments of `prepare.make_plan`.

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
    settings = json.dumps(options)
    try:
        with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            (
                pipeline
                | "pieces" >> apache_beam.Create(todo)
                | "spread over the workers" >> apache_beam.Reshuffle()
                | "transcode and write" >> apache_beam.MapTuple(functools.partial(_write, out, settings))
            )
    except RuntimeError as error:
        raise DataError(f"--runner={runner}: the pipeline failed: {str(error).strip().splitlines()[-1]}") from error


def _write(out, settings, split, index):
    from input_pipeline import shard_plan as pieces
    from input_pipeline import transcode

    (piece,) = (piece for piece in _plan(settings).jobs if (piece.split, piece.index) == (split, index))
    pieces.write(out, piece, map(transcode.run, piece.tasks))


@functools.lru_cache(maxsize=1)
def _plan(settings):
    from input_pipeline.prepare import make_plan

    return make_plan(**json.loads(settings))

"""The command `summary`: the parameters and the computation of a model."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from input_pipeline.files import write_bytes
from input_pipeline.outputs import output_file
from vidformers.errors import require
from vidformers.inference.explain.key_pictures import draw_keys
from vidformers.inference.explain.keys import model_keys
from vidformers.models.registry import build
from vidformers.models.summary import summarise
from vidformers.progress import log, table


def print_summary(config: dict, workdir, keys: str | None = None, query: str | None = None) -> None:
    """Prints the parameters of each module as a table and, as the last line, the costs as one JSON object.

    Args:
        config: the config of a run.
        workdir: the folder of the run. Its name is the name of the config; the folder need not exist.
        keys: the PNG file that gets a picture of the keys of a query in every attention of the model, or None.
        query: the frame, row and column of the query, such as '3,6,6'. None is the patch in the middle.
    Raises:
        ConfigError: the query is not a patch of the model, or is given without `keys`.
        DataError: the file `keys` cannot be written, or another command is writing it.
    """
    make_model, name = partial(build, **config["model"]), Path(workdir).name
    patch = _read_query(keys, query)
    with output_file(keys, "keys") if keys else nullcontext():
        picture = draw_keys(model_keys(make_model, patch)) if keys else None
        summary = summarise(make_model)
        rows = [(module, f"{count:,}") for module, count in summary.modules]
        table(name, [*rows, ("all", f"{summary.params:,}")])
        if picture is not None:
            write_bytes(Path(str(keys)), picture)
            log(f"Wrote {keys}: the keys of a query in every attention.")
    costs = {
        "config": name,
        "params": summary.params,
        "macs_per_view": summary.macs_per_view,
        "macs_per_view_linear": summary.macs_per_view_linear,
        "views": config["eval"]["clips"] * config["eval"]["crops"],
    }
    print(json.dumps(costs))


def _read_query(keys: str | None, query: str | None) -> tuple[int, ...] | None:
    """Returns the frame, row and column that `query` writes, or None. Raises ConfigError, see `print_summary`."""
    require(keys is not None or query is None, "--query needs --keys=FILE.png, the picture of the keys of the query.")
    require(keys is None or keys.endswith(".png"), f"--keys={keys} must end with .png.")
    numbers = [] if query is None else query.split(",")
    require(
        all(number.strip().isdecimal() for number in numbers),
        f"--query={query} must be three numbers from 0 on, the frame, the row and the column, such as --query=3,6,6.",
    )
    return None if query is None else tuple(map(int, numbers))

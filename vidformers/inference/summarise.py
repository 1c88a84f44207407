"""The command `summary`: the parameters and the computation of a model."""

import json
from functools import partial
from pathlib import Path

from vidformers.models.registry import build
from vidformers.models.summary import summarise
from vidformers.progress import table


def print_summary(config: dict, workdir) -> None:
    """Prints the parameters of each module as a table and, as the last line, the costs as one JSON object.

    Args:
        config: the config of a run.
        workdir: the folder of the run. Its name is the name of the config; the folder need not exist.
    """
    name = Path(workdir).name
    summary = summarise(partial(build, **config["model"]))
    rows = [(module, f"{count:,}") for module, count in summary.modules]
    table(name, [*rows, ("all", f"{summary.params:,}")])
    costs = {
        "config": name,
        "params": summary.params,
        "macs_per_view": summary.macs_per_view,
        "macs_per_view_linear": summary.macs_per_view_linear,
        "views": config["eval"]["clips"] * config["eval"]["crops"],
    }
    print(json.dumps(costs))

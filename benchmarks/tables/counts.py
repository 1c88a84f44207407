"""Parameters and multiply-adds of the rows, counted without running them, beside the counts that the papers print."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from benchmarks.tables.rows import Row, Table
from configs.loading import load, override
from input_pipeline.files import write_text
from vidformers import build
from vidformers.models.summary import summarise

RECORD = Path(__file__).with_name("counts.json")
CLASSES = 400  # counts are those of a model for Kinetics-400, on every data set
UNITS = {"G": 1e9, "T": 1e12}
_NORM_OPERATIONS = 5  # for each element, as fvcore counts a layer norm with scale and bias


class Counts(NamedTuple):
    """The parameters of a model, and the operations of one view."""

    params: int
    macs: int  # multiply-adds
    linear: int  # the multiply-adds of products with weights
    normalised: int  # the elements that pass a norm

    @property
    def with_norms(self) -> int:
        """The multiply-adds and the operations of norms, as fvcore counts them."""
        return self.macs + _NORM_OPERATIONS * self.normalised


_counted: dict[tuple, Counts] = {}  # fields of a model -> its counts

# How the cost that a paper prints follows from the counts of a model and the number of views.
RULES = {
    "views": lambda counts, views: views * counts.macs,
    "view, norms": lambda counts, views: counts.with_norms,
    "views, norms": lambda counts, views: views * counts.with_norms,
    "36 linear": lambda counts, views: 36 * counts.linear,
}
# Where a rule counts norms, the printed cost may differ by this much for each view, in 1e9 operations: the widths of
# STAT's stem and the places of its norms are not known.
NORMS_WITHIN = 0.25


def config_of(row: Row, with_cost: bool = False) -> ConfigDict:
    """Returns the config of a row with its overrides; with `with_cost` also those of `cost_with`."""
    file, colon, name = row.config.partition(":")
    config = load(f"configs/{file}.py{colon}{name}")
    for field in (*row.overrides, *(row.cost_with if with_cost else ())):
        path, _, text = field.partition("=")
        override(config, path, text)
    return config


def counts_of(row: Row, with_cost: bool = False) -> Counts:
    """Returns the counts of the model of a row, by shape alone."""
    model = config_of(row, with_cost).model.to_dict() | dict(num_classes=CLASSES)
    key = tuple(sorted((field, str(value)) for field, value in model.items()))
    if key not in _counted:
        _counted[key] = _count(model)
    return _counted[key]


def recorded() -> dict[str, Counts]:
    """Returns the counts in `counts.json`, by table and number of the row, such as 'mevit/1/3'."""
    return {name: Counts(**counts) for name, counts in json.loads(RECORD.read_text(encoding="utf-8")).items()}


def record(tables: Iterable[Table]) -> None:
    """Counts all rows of `tables` and writes `counts.json`."""
    counts = {
        f"{table.name}/{number}": counts_of(table.rows[number - 1])._asdict()
        for table in tables
        for number in table.numbers()
    }
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in counts.items())
    write_text(RECORD, "{\n" + ",\n".join(lines) + "\n}\n")


def expected_cost(table: Table, row: Row, counts: Counts) -> float:
    """Returns the cost that the paper would print for these counts, in the unit of the table."""
    return RULES[row.cost_is or table.cost_is](counts, _views(table, row)) / UNITS[table.cost_unit]


def _views(table: Table, row: Row) -> int:
    clips, crops = map(int, table.views_of(row).split("x"))
    return clips * crops


def cost_agrees(table: Table, row: Row, counts: Counts) -> bool:
    """Returns whether the printed cost is that of these counts."""
    rule, within = row.cost_is or table.cost_is, rounding(row.cost)
    if "norms" in rule:
        within += NORMS_WITHIN * (_views(table, row) if "views" in rule else 1)
    return abs(expected_cost(table, row, counts) - float(row.cost)) <= within


def params_agree(row: Row, counts: Counts) -> bool:
    """Returns whether the printed number of parameters is that of these counts, within its rounding."""
    return abs(counts.params / 1e6 - float(row.params)) <= rounding(row.params)


def rounding(printed: str) -> float:
    """Returns half a unit of the last printed digit."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def _count(model: dict) -> Counts:
    summary = summarise(partial(build, **model))
    return Counts(
        summary.params, summary.macs_per_view, summary.macs_per_view_linear, summary.normalised_per_view
    )  # fmt: skip

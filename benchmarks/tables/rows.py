"""A table of a paper as data: its rows, the commands that train them, and the figures that the paper prints."""

from collections.abc import Sequence
from dataclasses import dataclass

CONVOLUTIONAL = "a convolutional network"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table. All figures are texts with the digits that the paper prints; '' is not given.

    Attributes:
        label: the name or the setting of the row, as the paper prints it.
        config: the config without its folder, such as 'mevit_b16' or 'ssv2:mevit_b16'; '' for an unreachable row.
        overrides: fields of the config, such as 'model.depth=12'. They hold every field that the table varies, so that
            the row can be copied without the others.
        top1, top5: the reported accuracies in percent.
        views: clips x crops of the evaluation, such as '4x3'; '' is that of the table.
        cost: the printed cost, in the unit of the table.
        params: the printed number of parameters, in millions.
        cost_is: how the printed cost follows from the model, a key of `counts.RULES`; '' is that of the table.
        cost_with: overrides of the model whose cost the paper prints, if this is not the model of the row.
        differs: why the printed cost differs from the cost of the model; '' if it does not.
        guess: what the paper leaves open about this row, and the value that is used.
        unreachable: why no command trains the row; '' if there is one.
        small: overrides of the row in the small form of the table; None if the row is not in it.
    """

    label: str
    config: str = ""
    overrides: tuple[str, ...] = ()
    top1: str = ""
    top5: str = ""
    views: str = ""
    cost: str = ""
    params: str = ""
    cost_is: str = ""
    cost_with: tuple[str, ...] = ()
    differs: str = ""
    guess: str = ""
    unreachable: str = ""
    small: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Small:
    """The small form of a table, on the motion clips that the demo renders (`configs/demo.py`).

    Attributes:
        overrides: fields of the config of the demo that all rows set.
        mapping: how the paper's numbers become small ones, in words.
        tells: what these clips can and cannot tell about the table, in one sentence.
    """

    overrides: tuple[str, ...]
    mapping: str
    tells: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper.

    Attributes:
        name: PAPER/NUMBER, such as 'mevit/1'.
        title: the caption, shortened.
        data: the data set of the figures.
        views: clips x crops of the evaluation of rows that give none.
        cost_unit: 'G' or 'T' multiply-adds, which papers call FLOPs; '' without costs.
        cost_is: a key of `counts.RULES`.
        guess: what the paper leaves open about all rows, and the value that is used.
        small: the small form, or None.
    """

    name: str
    title: str
    data: str
    rows: Sequence[Row]
    views: str
    cost_unit: str = ""
    cost_is: str = "views"
    guess: str = ""
    small: Small | None = None

    def views_of(self, row: Row) -> str:
        """Returns clips x crops of the evaluation of a row."""
        return row.views or self.views

    def numbers(self, small: bool = False) -> list[int]:
        """Returns the numbers of the rows that a command trains, from 1 on; of the small form if `small`."""
        return [
            number
            for number, row in enumerate(self.rows, 1)
            if (row.small is not None if small else not row.unreachable)
        ]


def others(lines: str, why: str = CONVOLUTIONAL) -> tuple[Row, ...]:
    """Returns the rows of models that this library does not have.

    Args:
        lines: one row a line: label | top-1 | top-5 | views | cost, shortened at the end or with empty cells.
        why: why no command trains them.
    """
    rows = []
    for line in lines.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        label, top1, top5, views, cost = cells + [""] * (5 - len(cells))
        rows.append(Row(label=label, top1=top1, top5=top5, views=views, cost=cost, unreachable=why))
    return tuple(rows)

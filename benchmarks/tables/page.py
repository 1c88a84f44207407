"""The tables that a reader sees in docs/papers/, made from the data between two marks of each page."""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tables import counts
from benchmarks.tables.registry import PAPERS
from benchmarks.tables.report import markdown_head, markdown_row, printed_views, results_table
from benchmarks.tables.rows import Row, Table
from input_pipeline.files import write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "tables"
BEGIN, END = "<!-- tables: `python -m benchmarks.tables --write` makes this part -->", "<!-- end of tables -->"


def pages() -> dict[Path, str]:
    """Returns the text of every page that holds tables, by path.

    Raises:
        ValueError: a page lacks the marks.
    """
    made = counts.recorded()
    parts = {paper: "\n".join(_paper(tables, made)) for paper, (_, tables) in PAPERS.items()}
    parts["tables"] = "\n".join(_overview(made))
    return {path: _replaced(path, parts[path.stem]) for path in map(_page, parts)}


def write() -> None:
    """Writes all pages."""
    for path, text in pages().items():
        write_text(path, text)


def results_file(table: Table, small: bool) -> Path:
    """Returns the file of recorded results of a table, which may not exist."""
    return RESULTS / f"{table.name.replace('/', '-')}{'-small' if small else ''}.jsonl"


def _page(name: str) -> Path:
    return ROOT / "docs" / "papers" / f"{name}.md"


def _replaced(path: Path, part: str) -> str:
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must hold the lines {BEGIN} and {END} once.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def _paper(tables: tuple[Table, ...], made: dict[str, counts.Counts]) -> Iterator[str]:
    for table in tables:
        yield ""
        yield f"### {heading(table)}"
        yield ""
        yield f"`{table.name}`, {table.data}." + (f" What the paper leaves open: {table.guess}" if table.guess else "")
        yield ""
        yield from _rows(table, made)
        yield from _remarks(table)
        for small in (False, True):
            yield from _recorded(table, small)


def heading(table: Table) -> str:
    """Returns the heading of a table, such as 'Table 3: number of blocks'."""
    number = table.name.partition("/")[2]
    return f"Table {number}: {table.title}" if number.isdigit() else f"{table.title[0].upper()}{table.title[1:]}"


def _rows(table: Table, made: dict[str, counts.Counts]) -> Iterator[str]:
    columns = ["#", "row", "top-1", "top-5", "views"]
    has_cost, has_params = any(row.cost for row in table.rows), any(row.params for row in table.rows)
    columns += [f"printed cost, {table.cost_unit}"] * has_cost + ["printed parameters, M"] * has_params
    yield from markdown_head(*columns, "here: parameters, multiply-adds", "config and overrides")
    for number, row in enumerate(table.rows, 1):
        cells = [number, row.label, row.top1, row.top5, printed_views(table, row)]
        cells += [row.cost] * has_cost + [row.params] * has_params
        if row.unreachable:
            yield markdown_row(*cells, "", f"none: {row.unreachable}")
            continue
        count = made[f"{table.name}/{number}"]
        cells.append(f"{count.params / 1e6:.2f} M, {count.macs / 1e9:.1f} G")
        yield markdown_row(*cells, " ".join(f"`{word}`" for word in (row.config, *row.overrides)))


def _remarks(table: Table) -> Iterator[str]:
    """Yields one item for each remark of a row, and the small form."""
    items = [
        f"- Row {number}: {' '.join(filter(None, (row.guess, row.differs)))}"
        for number, row in enumerate(table.rows, 1)
        if row.guess or row.differs
    ]
    if table.small is not None:
        numbers = ", ".join(map(str, table.numbers(small=True)))
        items.append(f"- Small form (`--small`), rows {numbers}: {table.small.mapping} {table.small.tells}")
    if items:
        yield ""
        yield from items


def _recorded(table: Table, small: bool) -> Iterator[str]:
    path = results_file(table, small)
    if path.exists():
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        yield ""
        yield "Recorded runs" + (" of the small form:" if small else ":")
        yield ""
        yield from results_table(table, results, small)


def _overview(made: dict[str, counts.Counts]) -> Iterator[str]:
    """Yields one line a table: how many rows a command trains, and which printed counts agree with the model."""
    yield ""
    yield from markdown_head("table", "", "data", "rows", "with a command", "printed counts that agree", "small form")
    for name, tables in PAPERS.values():
        for table in tables:
            page = table.name.partition("/")[0]
            agree, checked = _agreement(table, made)
            yield markdown_row(
                f"[`{table.name}`]({page}.md)",
                f"{name}: {table.title}",
                table.data,
                len(table.rows),
                len(table.numbers()),
                f"{agree} of {checked}" if checked else "none printed",
                f"{len(table.numbers(small=True))} rows" if table.small else "",
            )


def _agreement(table: Table, made: dict[str, counts.Counts]) -> tuple[int, int]:
    """Returns how many printed counts agree with the models of the rows, and how many there are."""
    agree = [state for number in table.numbers() for state in states(table, number, made)]
    return sum(agree), len(agree)


def states(table: Table, number: int, made: dict[str, counts.Counts]) -> Iterator[bool]:
    """Yields for each printed count of a row whether it is that of the model of the row."""
    row, count = table.rows[number - 1], made[f"{table.name}/{number}"]
    if row.cost:
        yield counts.cost_agrees(table, row, count)
    if row.params:
        yield counts.params_agree(row, count)


def listing() -> Iterator[str]:
    """Yields one line for each row of every paper: its number, its command, and whether printed counts agree."""
    made = counts.recorded()
    for _, tables in PAPERS.values():
        for table in tables:
            for number, row in enumerate(table.rows, 1):
                yield f"{table.name} {number} | {row.label} | {_reachable(table, number, row, made)}"


def _reachable(table: Table, number: int, row: Row, made: dict[str, counts.Counts]) -> str:
    if row.unreachable:
        return f"no command: {row.unreachable}"
    agree = list(states(table, number, made))
    state = "no printed count" if not agree else "counts agree" if all(agree) else row.differs
    return f"python -m benchmarks.tables {table.name} --rows={number} | {state}"

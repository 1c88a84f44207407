"""A table of a paper with the figures of own runs beside the paper's, as Markdown."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.tables.rows import Row, Table
from benchmarks.tables.run import row_arguments


def results_table(table: Table, results: Sequence[dict], small: bool) -> list[str]:
    """Returns the lines of the table.

    Args:
        results: the results of finished runs (`run.run`), in any order.
        small: whether these are runs of the small form on motion clips.
    """
    by_row: dict[int, list[dict]] = {}
    for result in results:
        by_row.setdefault(result["row"], []).append(result)
    lines = [*markdown_head("#", "row", "paper: top-1", "top-5", "views", "here: top-1", "top-5", "views", "seeds")]
    for number, row in enumerate(table.rows, 1):
        if small and row.small is None:
            continue
        runs = by_row.get(number, [])
        lines.append(
            markdown_row(number, row.label, row.top1, row.top5, printed_views(table, row), *_figures(runs), len(runs))
        )
    return [*lines, "", *_notes(table, results, small)]


def printed_views(table: Table, row: Row) -> str:
    """Returns the views of a row; for rows without a command, those that the paper prints."""
    return row.views if row.unreachable else table.views_of(row)


def markdown_head(*columns: str) -> Iterator[str]:
    """Yields the first two lines of a table."""
    yield markdown_row(*columns)
    yield "|---" * len(columns) + "|"


def markdown_row(*cells) -> str:
    """Returns one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def _figures(runs: Sequence[dict]) -> tuple[str, str, str]:
    """Returns top-1, top-5 and the views of the runs of a row."""
    if not runs:
        return "", "", ""
    return _spread(runs, "top1"), _spread(runs, "top5"), runs[0]["protocol"]


def _spread(runs: Sequence[dict], name: str) -> str:
    """Returns the mean in percent and, of several runs, the standard deviation and the range."""
    values = sorted(100 * run[name] for run in runs)
    mean = f"{statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def _notes(table: Table, results: Sequence[dict], small: bool) -> Iterator[str]:
    """Yields what a reader must know to compare the figures: data, mapping, machine, date and hours."""
    yield f"The paper's figures are of {table.data}."
    if small and table.small is not None:
        yield f"Here: motion clips (`configs/demo.py`). {table.small.mapping} {table.small.tells}"
    if not results:
        return
    if flags := _flags(table, results, small):
        yield f"Flags of these runs: {flags}."
    yield "Top-1 and top-5 in percent: mean ± standard deviation over seeds, and range."
    hours = sum(result["seconds"] for result in results if "same_as" not in result) / 3600
    repeated = sorted({result["same_as"].partition("/")[0] for result in results if "same_as" in result})
    dates = sorted({result["date"] for result in results})
    machines = {" on ".join(filter(None, (result["devices"], result.get("machine")))) for result in results}
    commits = ", ".join(sorted({str(result["commit"])[:12] for result in results}))
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    yield f"{len(results)} runs on {', '.join(sorted(machines))}, {when}, {hours:.1f} hours in all, commit {commits}."
    if repeated:
        yield f"Some of these are runs of {', '.join(repeated)}, which the hours do not count."


def _flags(table: Table, results: Sequence[dict], small: bool) -> str:
    """Returns the flags that were given beyond those of the rows, as Markdown. The place of the data is left out."""
    flags: dict[str, None] = {}
    for result in results:
        own = {*row_arguments(table, result["row"], small), f"--config.seed={result['seed']}"}
        flags |= dict.fromkeys(flag for flag in result.get("arguments", ()) if flag not in own)
    return ", ".join(f"`{flag}`" for flag in flags if not flag.startswith("--config.data.root="))

"""What a person sees while a run goes on: a live bar on a terminal, lines in a log."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def log(sentence: str) -> None:
    console.print(sentence, markup=False)


class Bar:
    """A progress bar with figures beside it; where nobody watches a terminal, a line each time figures change."""

    def __init__(self, what: str, total: int, done: int = 0, shown: bool = True):
        self.what, self.total, self.done, self.shown = what, total, done, shown
        self.live = None
        if shown and console.is_terminal:
            self.live = Progress(
                TextColumn(what),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self.task = self.live.add_task(what, total=total, completed=done, text="")

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def advance(self, count: int = 1) -> None:
        self.done = min(self.done + count, self.total)  # the last batch may be padded
        if self.live:
            self.live.update(self.task, completed=self.done)

    def status(self, text: str) -> None:
        if self.live:
            self.live.update(self.task, text=text)
        elif self.shown:
            log(f"{self.what} {self.done}/{self.total}  {text}")


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """A table of rows of one length."""
    grid = Table(title=title, show_header=False, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)

"""The output of commands: log lines, tables, and a progress bar if the output is a terminal."""

import logging
import os

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from input_pipeline.text import printable

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def log(message: str) -> None:
    """Prints one line, above the progress bar if there is one. Line breaks in the message are escaped."""
    console.print(_shown(message))


def _shown(text: str) -> str:
    """Returns the text without characters that the terminal would obey or could not print."""
    return printable(text, console.encoding)


def silence_libraries() -> None:
    """Suppresses messages of libraries that are harmless or that the program reports itself."""
    # Python's resource tracker warns when it frees the semaphores of a pool whose program was killed.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the traceback of a failed save


class Bar:
    """A progress bar on a terminal. Elsewhere, it logs one line for each new status.

    Args:
        title: the text before the bar.
        total: the number of steps or videos at which the bar is full.
        done: the number of steps or videos that are done at the start.
        shown: False prints nothing. In a run of several processes, only process 0 shows the bar.
    """

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True):
        self.title, self.total, self.done, self.shown = title, total, done, shown
        self._progress = None
        if shown and console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
            )
            self._task = self._progress.add_task(title, total=total, completed=done, text="")

    def __enter__(self):
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._progress:
            self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """Adds `count` to `done`, up to `total`: the last batch may be padded."""
        self.done = min(self.done + count, self.total)
        if self._progress:
            self._progress.update(self._task, completed=self.done)

    def status(self, text: str) -> None:
        """Shows `text` beside the bar, or logs it as a line."""
        if self._progress:
            self._progress.update(self._task, text=_shown(text))
        elif self.shown:
            log(f"{self.title} {self.done}/{self.total}  {text}")


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Prints a table. All rows have the same number of columns."""
    grid = Table(title=_shown(title), show_header=False, title_justify="left")
    for row in rows:
        grid.add_row(*map(_shown, row))
    console.print(grid)

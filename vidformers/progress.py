"""The output of commands: log lines, tables, and a progress bar if the output is a terminal."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from input_pipeline.text import printable

SILENT_SECONDS = 30  # after which a program that works says so

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


_last_output = time.monotonic()
_activities: list[object] = []  # the blocks of `reported` that are entered, the innermost last


def log(message: str) -> None:
    """Prints one line, above the progress bar if there is one. Line breaks in the message are escaped."""
    global _last_output
    _last_output = time.monotonic()
    console.print(_shown(message))


@contextmanager
def reported(text: str | Callable[[], str], shown: bool = True) -> Iterator[None]:
    """Logs what the program does whenever it has printed nothing for half a minute, until the block ends.

    Args:
        text: what it does, or a function that says it. The seconds since the start of the block follow.
        shown: False logs nothing. In a run of several processes, only process 0 logs.
    """
    if not shown:
        yield
        return
    start, ended, activity = time.monotonic(), threading.Event(), object()

    def report() -> None:
        while not ended.wait(max(_last_output + SILENT_SECONDS - time.monotonic(), SILENT_SECONDS / 10)):
            is_silent = time.monotonic() - _last_output >= SILENT_SECONDS
            if is_silent and _activities[-1:] == [activity]:  # otherwise an inner block has more to say
                with suppress(OSError):  # a closed pipe, which the main thread finds too
                    log(f"{text if isinstance(text, str) else text()}  {time.monotonic() - start:.0f} s so far")

    thread = threading.Thread(target=report, name="report", daemon=True)
    _activities.append(activity)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        _activities.remove(activity)
        thread.join()


def _shown(text: str) -> str:
    """Returns the text without characters that the terminal would obey or could not print."""
    return printable(text, console.encoding)


def silence_libraries() -> None:
    """Suppresses messages of libraries that are harmless or that the program reports itself."""
    # Python's resource tracker warns when it frees the semaphores of a pool whose program was killed.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the traceback of a failed save


class Bar:
    """A progress bar on a terminal. Elsewhere, it logs one line for each new status, and one each half minute.

    These lines end with the time left, if that is half a minute or more, at the mean speed since the start.

    Args:
        title: the text before the bar.
        total: the number of steps or videos at which the bar is full.
        done: the number of steps or videos that are done at the start.
        shown: False prints nothing. In a run of several processes, only process 0 shows the bar.
    """

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True):
        self.title, self.total, self.done, self.shown = title, total, done, shown
        self._progress, self._stack = None, ExitStack()
        self._done_before, self._started = done, time.monotonic()
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
        elif self.shown:
            self._stack.enter_context(reported(lambda: f"{self.title} {self.done}/{self.total}{self._time_left()}"))
        return self

    def __exit__(self, *_):
        self._stack.close()
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
            log(f"{self.title} {self.done}/{self.total}  {text}{self._time_left()}")

    def _time_left(self) -> str:
        advanced = self.done - self._done_before
        left = (time.monotonic() - self._started) * (self.total - self.done) / advanced if advanced else 0
        if left < SILENT_SECONDS:
            return ""
        return f"  about {left / 60:.0f} min left" if left >= 90 else f"  about {left:.0f} s left"


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Prints a table. All rows have the same number of columns."""
    grid = Table(title=_shown(title), show_header=False, title_justify="left")
    for row in rows:
        grid.add_row(*map(_shown, row))
    console.print(grid)

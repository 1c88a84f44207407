"""The parts that all commands of this package share: usage text, error messages and exit status."""

import functools
import os
import signal
import sys
from collections.abc import Callable

from input_pipeline.errors import DataError
from input_pipeline.stop_signals import StopRequested, ignore_stop_signals, install_signal_handlers, report_stop
from input_pipeline.text import print_line


def command(usage: str):
    """Returns a decorator that turns `work(argv)` into the `main(argv)` of a command.

    `main` prints errors as one sentence on standard error. It returns the status of `work`, or 0 if `work` returns
    None. It returns 2 after a mistake of the user, or if a file cannot be read or written. If `run_program` runs it, it
    returns 128 + N after signal N.

    Args:
        usage: text that --help prints.
    """

    def decorate(work: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(work)
        def main(argv):
            try:
                if {"--help", "-h"} & set(argv):
                    print(usage)
                    return 0
                return _run(work, argv)
            except BrokenPipeError:  # the reader, for example `head`, has closed standard output
                return 128 + signal.SIGPIPE
            except OSError as error:
                file = error.filename or "a file"
                return _fail(f"{file} cannot be read or written: {error.strerror or error}.")
            except StopRequested as request:
                return report_stop(request, "Interrupted. Finished work is kept; the same command continues it.")

        return main

    return decorate


def _run(work, argv):
    try:
        from configs.loading import FlagError
    except ModuleNotFoundError as error:
        if error.name not in ("configs", "configs.loading"):
            raise
        return _fail(
            "The package configs, which reads --config=FILE, was not found: pip does not install it. "
            "Run this command in the root folder of a clone of the repository."
        )
    try:
        return work(argv) or 0
    except (FlagError, DataError) as error:
        return _fail(error)


def _fail(message):
    print_line(f"vidformers: {message}", sys.stderr)
    return 2


def run_program(main: Callable[[list[str]], int]) -> None:
    """Runs the `main` of a command as a program: signals stop it, and it exits after all output has been flushed."""
    install_signal_handlers()
    status = main(sys.argv[1:])
    ignore_stop_signals()  # the work is done: a signal must not change the status
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for example `head`, has closed standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    sys.exit(status)

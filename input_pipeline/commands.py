"""What the commands of this package share: how they end."""

import functools
import os
import signal
import sys
from collections.abc import Callable

from input_pipeline.errors import DataError


def command(usage: str):
    """Makes the `main(argv)` of a command of what does its work: whatever ends that becomes one sentence and a status.

    The status is the one that the work returns, 0 if none; 2 after a mistake or where the disk refuses; 130 after an
    interrupt. --help prints `usage`.
    """

    def decorate(work: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(work)
        def main(argv):
            from configs.sheet import SheetError

            try:
                if "--help" in argv:
                    print(usage)
                    return 0
                return work(argv) or 0
            except BrokenPipeError:  # `head`, say, has enough of what is printed
                return 128 + signal.SIGPIPE
            except (SheetError, DataError) as error:
                print(f"vidformers: {error}", file=sys.stderr)
                return 2
            except OSError as error:
                print(
                    f"vidformers: {error.filename or 'a file'} cannot be read or written: {error.strerror or error}.",
                    file=sys.stderr,
                )
                return 2
            except KeyboardInterrupt:
                print("Interrupted; what is done stays, and the same command goes on.", file=sys.stderr)
                return 128 + signal.SIGINT

        return main

    return decorate


def end(status: int):
    """Ends the program, with nothing left unprinted that somebody still reads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and its status shall be told
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `head`, say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
    sys.exit(status)

"""The command line of a benchmark. This module does not import JAX, so that `benchmarks.all` holds no device."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from input_pipeline.errors import DataError
from input_pipeline.outputs import output_file, output_folder
from input_pipeline.paths import local_path
from input_pipeline.text import print_line

_PATHS = ("out", "table", "workdir", "data")


def parse(about: str, **defaults) -> argparse.Namespace:
    """Parses the command line.

    Args:
        about: text that --help shows.
        **defaults: options with their default values. An option has the type of its default, or text if that is None.
            An option whose default is False is a switch, without a value.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind: dict = dict(type=str if default is None else type(default))
        if name == "dtype":
            kind = dict(choices=["float32", "bfloat16"])
        elif default is False:
            kind = dict(action="store_true")
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **kind)
    args = parser.parse_args()
    for name in _PATHS:
        if path := getattr(args, name, None):
            try:
                setattr(args, name, local_path(f"--{name}", path))
            except DataError as error:
                parser.error(str(error))
    return args


@contextlib.contextmanager
def output(path, is_folder: bool = True, shared: bool = True) -> Iterator[None]:
    """Verifies before the work that the files of --out can be written. Locks them until the block ends.

    If they cannot be written, the program ends with one sentence and status 2.

    Args:
        path: a folder, which is created if it does not exist, or a file in a folder that exists.
        is_folder: whether `path` is a folder.
        shared: whether several commands may write to the folder at once.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(output_folder(path, "out", shared) if is_folder else output_file(path, "out"))
        except DataError as error:
            print_line(f"vidformers: {error}", sys.stderr)
            sys.exit(2)
        yield

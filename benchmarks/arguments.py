"""The command line of a benchmark. This module does not import JAX, so that `benchmarks.all` holds no device."""

import argparse

from input_pipeline.errors import DataError
from input_pipeline.paths import local_path

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

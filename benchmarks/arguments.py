"""The command line of a benchmark. Imports no JAX, which `benchmarks.all` must not hold a device by."""

import argparse


def parse(about: str, **defaults) -> argparse.Namespace:
    """The options `defaults`, each of the type of its default, text where that is None; --help shows `about`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind = (
            dict(choices=["float32", "bfloat16"])
            if name == "dtype"
            else dict(type=str if default is None else type(default))
        )
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **kind)
    return parser.parse_args()

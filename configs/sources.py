"""The source of every value of a recipe: a paper and its section, a file of the authors' public code, or a guess.

    cite(config, "MEViT, section 4.1", data=dict(short_side=(256, 320)), eval=dict(clips=1, crops=3))
    guess(config, "the paper does not name an optimizer", "HaViT, Table 1", optim=dict(name="adamw"))

`python -m configs.sources --config=configs/NAME.py[:VARIANT]` prints the values of a config with their sources.
"""

import sys
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.loading import FlagError, read_flags
from input_pipeline.text import print_line


class Source(NamedTuple):
    """Where the value of a field comes from.

    Attributes:
        value: the value that was set with the source.
        text: the paper and section, or the repository, file and field.
        open: what the paper leaves open, so that the value is a guess. None if the source states the value.
    """

    value: object
    text: str
    open: str | None = None

    def __str__(self):
        return self.text if self.open is None else f"guess: {self.open}. Here: {self.text}"


def cite(config: ConfigDict, text: str, /, **sections: dict) -> None:
    """Sets fields of a config and records the source that states their values.

    Args:
        config: what `base` returned.
        text: the paper and section, or the repository, file and field.
        **sections: the fields of each section, such as optim=dict(lr=0.1).
    Raises:
        KeyError: there is no such section or field.
    """
    _record(config, text, None, sections)


def guess(config: ConfigDict, open: str, text: str, /, **sections: dict) -> None:
    """Sets fields of a config that its paper and its authors' code leave open.

    Args:
        config: what `base` returned.
        open: what is left open, without a full stop.
        text: whose value stands there, or the reason for the value.
        **sections: the fields of each section.
    """
    _record(config, text, open, sections)


def _record(config: ConfigDict, text: str, open: str | None, sections: dict[str, dict]) -> None:
    recorded = sources(config)
    for name, fields in sections.items():
        if unknown := sorted(fields.keys() - config[name].keys()):
            raise KeyError(f"{name}.{unknown[0]} is not a field of this config.")
        config[name].update(fields)
        for field in fields:
            recorded[f"{name}.{field}"] = Source(config[name][field], text, open)
    # Not a field of the config, so that runs, exports and flags do not change.
    object.__setattr__(config, "_sources", recorded)


def sources(config: ConfigDict) -> dict[str, Source]:
    """Returns the source of each field, such as `optim.lr`, that `cite` or `guess` set last."""
    return dict(config.__dict__.get("_sources", {}))


def table(config: ConfigDict) -> str:
    """Returns one line per recorded field: the field, its value, and its source."""
    rows = []
    for field, source in sorted(sources(config).items()):
        section, _, name = field.partition(".")
        value = config[section][name]
        text = str(source) if value == source.value else f"a flag; {source.value!r} is from {source}"
        rows.append((field, repr(value), text))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(f"{field:{widths[0]}}  {value:{widths[1]}}  {text}" for field, value, text in rows)


def main(argv: list[str]) -> int:
    """Prints the table of the config that --config names, and returns the exit status."""
    try:
        config, _ = read_flags(argv, {})
    except FlagError as error:
        print_line(f"configs.sources: {error}", sys.stderr)
        return 2
    print(table(config))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

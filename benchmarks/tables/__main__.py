"""`python -m benchmarks.tables`: see `benchmarks/tables/__init__.py`."""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import tables
from benchmarks.arguments import output
from benchmarks.tables.registry import TABLES, find
from benchmarks.tables.report import results_table
from benchmarks.tables.rows import Table
from benchmarks.tables.run import ROOT, Failed, Job, make_jobs, read_result, run
from configs.loading import FlagError, flag_path, require
from input_pipeline.files import write_text
from input_pipeline.text import print_line

SWITCHES = ("--print", "--small", "--record")
OWN = ("--config", "--mode", "--workdir")  # flags of main.py that the rows set


class Command(NamedTuple):
    """A parsed command line."""

    table: Table
    rows: list[int]
    seeds: int
    out: Path
    switches: frozenset[str]
    fields: list[str]  # flags --config.section.field=VALUE

    @property
    def small(self) -> bool:
        return "--small" in self.switches


def parse(arguments: Sequence[str]) -> Command:
    """Parses the arguments, without the name of the program.

    Raises:
        FlagError: the table, a row or a flag is wrong.
    """
    names = [argument for argument in arguments if not argument.startswith("--")]
    require(len(names) == 1, "Give the name of one table, such as mevit/1. --list shows them all.")
    table = find(names[0])
    values, fields, switches = {"--rows": "", "--seeds": "1", "--out": ""}, [], set()
    for flag in (argument for argument in arguments if argument.startswith("--")):
        name, equals, value = flag.partition("=")
        require(name not in OWN, f"{name} cannot be given: the rows of {table.name} set it.")
        if flag in SWITCHES:
            switches.add(flag)
        elif name.startswith("--config."):
            require(bool(equals), f"{flag} has no value. Write {name}=VALUE.")
            fields.append(flag)
        else:
            require(name in values and bool(equals), f"{flag} is not a flag; --help shows them.")
            values[name] = value
    require(
        values["--seeds"].isdecimal() and int(values["--seeds"]) > 0,
        f"--seeds={values['--seeds']} must be an integer, at least 1.",
    )
    small = "--small" in switches
    default = ROOT / "runs" / "tables" / (table.name.replace("/", "-") + ("-small" if small else ""))
    return Command(
        table,
        _rows(table, values["--rows"], small),
        int(values["--seeds"]),
        Path(flag_path("--out", values["--out"])).absolute() if values["--out"] else default,
        frozenset(switches),
        fields,
    )


def _rows(table: Table, text: str, small: bool) -> list[int]:
    """Returns the numbers of --rows, or of all rows that can run."""
    possible = table.numbers(small)
    require(
        not small or table.small is not None,
        f"{table.name} has no small form. These have: "
        f"{', '.join(name for name, other in TABLES.items() if other.small)}.",
    )
    if not text:
        return possible
    numbers = []
    for word in text.split(","):
        require(
            word.isdecimal() and 1 <= int(word) <= len(table.rows),
            f"--rows={text}: {word!r} is not a row of {table.name}, which has the rows 1 to {len(table.rows)}.",
        )
        row = table.rows[int(word) - 1]
        reason = row.unreachable or "it is not in the small form"
        require(int(word) in possible, f"--rows={text}: row {word} of {table.name} ({row.label}) has no run: {reason}.")
        numbers.append(int(word))
    return list(dict.fromkeys(numbers))


def run_all(command: Command, jobs: Sequence[Job]) -> None:
    """Trains all runs, writes the table and the results after each, and prints the table at the end."""
    for job in jobs:
        read_result(job)  # refuses a changed row before anything runs
    for job in jobs:
        run(job)
        results = finished(command)
        lines = results_table(command.table, results, command.small)
        write_text(command.out / "table.md", "\n".join(lines) + "\n")
        write_text(command.out / "results.jsonl", "".join(json.dumps(result) + "\n" for result in results))
    print("\n".join(lines))
    if "--record" in command.switches:
        from benchmarks.tables import page

        page.RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(command.out / "results.jsonl", page.results_file(command.table, command.small))
        page.write()


def finished(command: Command) -> list[dict]:
    """Returns the results in the folder of a command, also of rows and seeds that other commands with its flags ran."""
    results = []
    for path in command.out.glob("row*-seed*.json"):
        match = re.fullmatch(r"row(\d+)-seed(\d+)", path.stem)
        with contextlib.suppress(FlagError):  # of a row that these flags do not fit, or of a run with other flags
            if match and int(match[1]) in command.table.numbers(command.small):
                row, seed = int(match[1]), int(match[2])
                (job,) = make_jobs(command.table, [row], [seed], command.fields, command.out, command.small)
                results += [result] if "top1" in (result := read_result(job)) else []
    return sorted(results, key=lambda result: (result["row"], result["seed"]))


def main(arguments: Sequence[str]) -> int:
    """Runs the command. Returns its exit status: 2 after a mistake, and that of a run that failed or was stopped."""
    if "--help" in arguments:
        print(tables.__doc__)
        return 0
    if list(arguments) in (["--list"], ["--write"]):
        from benchmarks.tables import counts, page

        if arguments[0] == "--write":
            counts.record(TABLES.values())
            page.write()
        else:
            print("\n".join(page.listing()))
        return 0
    try:
        command = parse(arguments)
        jobs = make_jobs(
            command.table, command.rows, range(command.seeds), command.fields, command.out, command.small
        )  # fmt: skip
        if "--print" in command.switches:
            print("\n".join(job.command for job in jobs))
        else:
            with output(command.out):
                run_all(command, jobs)
    except (FlagError, Failed) as error:
        print_line(f"vidformers: {error}", sys.stderr)
        return error.status if isinstance(error, Failed) else 2
    except OSError as error:
        print_line(f"vidformers: {error.filename or command.out}: {error.strerror or error}.", sys.stderr)
        return 2
    except KeyboardInterrupt:  # between two runs
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

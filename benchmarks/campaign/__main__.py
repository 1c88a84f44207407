"""The command line of the campaign."""

import argparse
import datetime
import shutil
import sys
from pathlib import Path

from benchmarks import campaign
from benchmarks.arguments import output, parse
from benchmarks.campaign import runner

FOLDER = runner.ROOT / ".cache" / "campaign"


def main() -> int:
    args = parse(
        campaign.__doc__,
        only=",".join(campaign.PARTS),
        count=0,
        minutes=55.0,
        fresh=False,
        out=str(runner.ROOT / "benchmarks" / "results"),
    )
    names = args.only.split(",")
    unknown = [name for name in names if name not in campaign.PARTS]
    if unknown:
        raise SystemExit(f"--only={args.only}: there is no {unknown[0]}. Choose from {', '.join(campaign.PARTS)}.")
    with output(args.out):
        return run(names, args)


def run(names: list[str], args: argparse.Namespace) -> int:
    """Runs parts of the campaign. Returns 1 if one is stopped or has failed."""
    status = 0
    for name in names:
        if args.fresh:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
        results, new = runner.run_part(f"benchmarks.campaign.{name}", FOLDER / name, args.count, args.minutes)
        if results is None:
            print(f"{name}: stopped after {args.minutes:g} minutes. The same command continues it.", flush=True)
            status = 1
            continue
        lines = runner.summarise(name, results)
        if new and not args.count:
            runner.record(lines, Path(args.out) / f"campaign-{datetime.date.today().isoformat()}.jsonl")
        status = status or int(any(result["failed"] for result in results))
    return status


if __name__ == "__main__":
    sys.exit(main())

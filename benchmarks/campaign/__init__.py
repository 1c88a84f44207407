"""A campaign of hostile cases: killed runs and predictions, damaged files, foreign values, long runs.

Command: python -m benchmarks.campaign [--only=PART,PART] [--count=N] [--minutes=55] [--fresh]
         [--out=benchmarks/results]
The parts are the modules of this package that `PARTS` names. Each has a fixed number of cases, and --count runs only
the first N of each part. A part that takes longer than --minutes stops, and the same command continues it: finished
cases are kept in .cache/campaign until --fresh is given. A part that is complete prints one JSON line for each of its
sets of cases, and appends them to --out/campaign-DATE.jsonl unless --count was given. The exit status is 1 if a case
has failed or a part is not complete.

A part is a module with

    COUNT: int                                  the number of its cases
    SECONDS: float                              the time after which a case counts as a hang
    BYTES: int                                  the memory that a case may take beyond what the process had before
    case_set(number) -> str                     the set to which a case belongs
    prepare(folder) -> None                     makes what the cases share, in a folder that is kept, if it is not there
    run_case(number, folder) -> dict            runs a case: {"outcome": str, "failed": bool} and figures (numbers)

A case depends on its number alone. Kinds of cases alternate with the number, so that a short run has some of each. The
cases of a part run in one process, one after another. A case that crashes, hangs or takes too much memory ends this
process, counts as failed, and the next case runs in a new process. An exception of `run_case` is a failure, too.
"""

PARTS = ("kills", "predictions", "checkpoints", "videos", "files", "fields", "memory")

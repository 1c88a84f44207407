"""Trains, evaluates, predicts, explains, exports; see USAGE."""

import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

USAGE = """python main.py --config=FILE[:MODEL] [--config.section.field=value ...]
               [--workdir=DIR] [--mode=train|eval|predict|explain|export|summary] [--distributed=true]
               [--coordinator=HOST:PORT --processes=N --process=I]
               [--video=FILE_OR_FOLDER_OR_LIST] [--out=FILE.jsonl_OR_DIR] [--features=FILE.npz]
               [--target=CLASS]

The workdir is runs/NAME by default, and given again it resumes. configs/ holds the experiment sheets, configs/base.py
every field. --distributed=true joins the hosts of a TPU pod or cluster into one run; where none tells who they are,
give each process --coordinator=HOST:PORT of the first, --processes=N and --process=I, from 0 to N-1.

--mode=predict prints the likeliest classes of --video: a file, all files below a folder, or those that a .txt or .csv
lists, a path a line. --out gets a line of JSON for each, and goes on where it was stopped; --features what the head
reads.

--mode=explain draws into the folder --out what in each video counted for --target, or for the likeliest class.

--mode=export makes the folder --out, which holds the parameters as safetensors, the model as a program that runs
without this library, and a README."""

# The flags of each mode beside those of all, and whether it needs them.
FLAGS = {
    "train": {},
    "eval": {},
    "summary": {},
    "predict": {"video": True, "out": False, "features": False},
    "explain": {"video": True, "out": True, "target": False},
    "export": {"out": True},
}
HOSTS = ("coordinator", "processes", "process")  # flags of --distributed


def parse(argv):
    """(config as nested dicts, workdir, mode, where the other processes are or None, the flags of the mode).

    Raises:
        SheetError: a mistake.
    """
    from configs.sheet import read_flags, require

    own = dict.fromkeys(flag for flags in FLAGS.values() for flag in flags)
    config, given = read_flags(
        argv[1:], {"workdir": None, "mode": "train", "distributed": "false", **dict.fromkeys(HOSTS), **own}
    )
    mode = given["mode"]
    require(mode in FLAGS, f"--mode={mode} must be one of {', '.join(FLAGS)}.")
    require(given["distributed"] in ("true", "false"), f"--distributed={given['distributed']} must be true or false.")
    require(
        given["distributed"] == "false" or mode in ("train", "eval"),
        f"--mode={mode} is a command of one process; --distributed=true is for train and eval.",
    )
    for flag in HOSTS:
        require(given["distributed"] == "true" or not given[flag], f"--{flag} is a flag of --distributed=true.")
        require(
            flag == "coordinator" or not given[flag] or given[flag].isdigit(),
            f"--{flag}={given[flag]} must be a whole number.",
        )
    hosts = {flag: given[flag] and (given[flag] if flag == "coordinator" else int(given[flag])) for flag in HOSTS}
    for flag in own:
        takers = " or ".join(f"--mode={each}" for each in FLAGS if flag in FLAGS[each])
        require(flag in FLAGS[mode] or not given[flag], f"--{flag} is a flag of {takers}.")
        require(given[flag] or not FLAGS[mode].get(flag), f"--mode={mode} needs --{flag}; --help shows it.")
    file, _, model = given["config"].partition(":")
    workdir = given["workdir"] or f"runs/{Path(file).stem}" + (f"_{model}" if model else "")
    return (
        config.to_dict(),
        workdir,
        mode,
        hosts if given["distributed"] == "true" else None,
        {flag: given[flag] for flag in FLAGS[mode]},
    )


def summarise(config, name):
    """Prints a table by module and, as the last line, one JSON object."""
    import json
    from functools import partial

    from vidformers import build
    from vidformers.models.summary import summarise as count
    from vidformers.progress import table

    summary = count(partial(build, **config["model"]))
    table(name, [(module, f"{size:,}") for module, size in summary.modules] + [("all", f"{summary.params:,}")])
    print(
        json.dumps(
            {
                "config": name,
                "params": summary.params,
                "macs_per_view": summary.macs_per_view,
                "macs_per_view_linear": summary.macs_per_view_linear,
                "views": config["eval"]["clips"] * config["eval"]["crops"],
            }
        )
    )


def cache_compilations(workdir):
    """Keeps compiled programs, so that the second start of a run is quick: in the user's cache folder, but those of one
    run of many processes in its own, which all hosts see. On GPUs processes share out the tuning of a program: all must
    find it, or none, since one that compiles waits for the others."""
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidformers" / "compiled"
    folder = Path(workdir).absolute() / "compiled" if one_of_many() else own
    jax.config.update("jax_compilation_cache_dir", str(folder))
    show = warnings.showwarning

    def forget(message, *rest, **more):
        # A kill or a full disk leaves half a program, which JAX would warn of, and never replace, at every start.
        if "persistent compilation cache" not in str(message):
            return show(message, *rest, **more)
        for program in filter(Path.is_file, folder.glob("*")):  # XLA keeps folders there, too
            program.unlink(missing_ok=True)

    warnings.showwarning = forget


def main(argv) -> int:
    """Exit status 0; 2 after a mistake, with one sentence; 128 + the signal's number after one that was heeded; 1 where
    the other processes of a run are gone."""
    try:
        return run(argv)
    except Asked as wish:  # training itself heeds the signal between two steps, and saves
        wish.answered = True
        warnings.simplefilter("ignore")  # of coroutines that were left half-way, as objects are that will complain, too
        sys.unraisablehook = lambda _: None
        print("Interrupted; nothing is lost, and the same command goes on.", file=sys.stderr)
        return 128 + wish.args[0]
    except OSError as error:
        print(
            f"vidformers: {error.filename or 'a file'} cannot be read or written: {error.strerror or error}.",
            file=sys.stderr,
        )
        return 2


class Asked(KeyboardInterrupt):
    """A wish that the program stop, by the signal of this number.

    JAX ignores whatever is raised at some moments (as it traces, in a callback of the garbage collector): when this is
    dropped and was not answered, the signal comes again.
    """

    answered = False

    def __del__(self):
        if not self.answered:
            threading.Timer(0.01, os.kill, (os.getpid(), *self.args)).start()


def heed_signals():
    """Makes an exception of ctrl-C, which a program that was started in the background ignores, and of SIGTERM."""

    def ask(number, _):
        raise Asked(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    sys.unraisablehook = lambda ignored: isinstance(ignored.exc_value, Asked) or sys.__unraisablehook__(ignored)


def run(argv) -> int:
    """`main`, but for what may go wrong at any moment."""
    if "--help" in argv:
        print(USAGE)
        return 0
    from configs.sheet import SheetError
    from input_pipeline.errors import DataError
    from vidformers.errors import ConfigError

    try:
        config, workdir, mode, hosts, flags = parse(argv)
        if mode == "summary":
            summarise(config, Path(workdir).name)
            return 0
        if hosts:
            from vidformers.parallel.processes import initialize

            initialize(**hosts)
        return work(config, workdir, mode, flags)
    except (SheetError, ConfigError, DataError) as error:
        print(f"vidformers: {error}", file=sys.stderr)
        return 2


def work(config, workdir, mode, flags) -> int:
    """What `mode` asks for."""
    import jax

    from vidformers.parallel.processes import finish
    from vidformers.training.stopping import Interrupted
    from vidformers.training.train import train
    from vidformers.training.validation import evaluate

    cache_compilations(workdir)
    # A batch that was ready when its reader closed is freed by Python's resource tracker, which need not say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    # Orbax logs the traceback of a save that fails; the trainer says it in a sentence.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that on its first start it looks for fonts
    if mode == "predict":
        from vidformers.inference.predict import predict

        predict(config, workdir, **flags)
        return 0
    if mode == "explain":
        from vidformers.inference.explain_videos import explain

        explain(config, workdir, **flags)
        return 0
    if mode == "export":
        from vidformers.inference.export import export

        export(config, workdir, **flags)
        return 0
    code = 0
    try:
        (train if mode == "train" else evaluate)(config, workdir)
    except Interrupted as stopped:
        if jax.process_index() == 0:
            print(stopped)
        code = 128 + stopped.signal
    finish()
    return code


def one_of_many() -> bool:
    """Whether this process has joined others."""
    return (
        "vidformers.parallel.processes" in sys.modules and sys.modules["vidformers.parallel.processes"].is_initialized
    )


if __name__ == "__main__":
    heed_signals()
    try:
        code = main(sys.argv)
    except Exception as error:
        if not one_of_many():
            raise
        code = sys.modules["vidformers.parallel.processes"].report_failure(error)
    sys.stdout.flush()
    if one_of_many():
        sys.modules["vidformers.parallel.processes"].exit_process(code)
    sys.exit(code)

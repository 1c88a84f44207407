"""Plans, trains, evaluates, predicts, explains, exports and summarises. `python main.py --help` shows examples."""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.stop_signals import StopRequested, exit_at_once, install_signal_handlers, report_stop
from input_pipeline.text import print_line


class Mode(NamedTuple):
    """A value of --mode: the module and name of `function(config, workdir, **flags)`, and the flags it takes."""

    module: str
    function: str
    required_flags: tuple[str, ...] = ()
    optional_flags: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        return self.required_flags + self.optional_flags


_PARTS = ("out", "features", "shard", "merge")
_TIMELINE = ("every", "window", "from", "to", "threshold", "shortest")
MODES = {
    "train": Mode("vidformers.training.train", "train"),
    "eval": Mode("vidformers.training.validation", "evaluate", (), ("part",)),
    "summary": Mode("vidformers.inference.summarise", "print_summary", (), ("keys", "query")),
    "plan": Mode(
        "vidformers.training.plan", "plan", (), ("topology", "estimate", "largest", "train_videos", "decode_rate")
    ),
    "predict": Mode("vidformers.inference.predict", "predict", ("video",), (*_PARTS, *_TIMELINE)),
    "explain": Mode("vidformers.inference.explain_videos", "explain", ("video", "out"), ("target", "layer", "beside")),
    "export": Mode("vidformers.inference.export", "export", ("out",)),
}
MODE_FLAGS = tuple(dict.fromkeys(flag for mode in MODES.values() for flag in mode.flags))
PROCESS_FLAGS = ("coordinator", "processes", "process")  # flags of --distributed=true


class Command(NamedTuple):
    """A parsed command line."""

    config: dict[str, Any]
    workdir: str
    mode: str
    process: dict[str, Any] | None  # the arguments of `processes.initialise`, None without --distributed=true
    flags: dict[str, str | None]  # the flags of the mode
    given: frozenset[str]  # the fields of the config that the command line sets, such as 'data.size'
    file: str | None  # the flag --config
    notes: tuple[str, ...]  # sentences for the user on fields that differ from those of the run


def parse(argv) -> Command:
    """Returns the command that `argv`, with the name of the program first, describes.

    Raises:
        FlagError: a flag or a field of the config is wrong.
        ConfigError: the workdir holds a run whose `run.json` is damaged.
    """
    from configs.loading import read_arguments, require
    from configs.runs import command_config

    defaults = {"workdir": None, "mode": "train", "distributed": "false"}
    flags, fields = read_arguments(argv[1:], defaults | dict.fromkeys(PROCESS_FLAGS + MODE_FLAGS))
    mode, distributed = flags["mode"], flags["distributed"]
    require(mode in MODES, f"--mode={mode} must be one of {', '.join(MODES)}.")
    require(distributed in ("true", "false"), f"--distributed={distributed} must be true or false.")
    require(
        distributed == "false" or mode in ("train", "eval"),
        f"--mode={mode} runs in one process. Leave out --distributed=true, which is for train and eval.",
    )
    for flag in PROCESS_FLAGS:
        value = flags[flag]
        require(distributed == "true" or not value, f"--{flag} is a flag of --distributed=true.")
        require(
            flag == "coordinator" or not value or value.isdigit(), f"--{flag}={value} must be an integer, at least 0."
        )
    for flag in MODE_FLAGS:
        modes = " or ".join(f"--mode={name}" for name in MODES if flag in MODES[name].flags)
        require(flag in MODES[mode].flags or not flags[flag], f"--{flag} is a flag of {modes}.")
        require(
            flag not in MODES[mode].required_flags or flags[flag], f"--mode={mode} needs --{flag}. See --help={mode}."
        )
    process = {
        flag: int(flags[flag]) if flags[flag] and flag != "coordinator" else flags[flag] for flag in PROCESS_FLAGS
    }
    workdir = flags["workdir"] or _default_workdir(flags["config"])
    require(workdir is not None, "--config=FILE starts a run, and --workdir=DIR continues one. Give one. See --help.")
    config = command_config(flags["config"], workdir, mode, fields)
    return Command(
        config=config.config,
        workdir=workdir,
        mode=mode,
        process=process if distributed == "true" else None,
        flags={flag: flags[flag] for flag in MODES[mode].flags},
        given=config.given,
        file=flags["config"],
        notes=config.notes,
    )


def _default_workdir(config: str | None) -> str | None:
    """Returns runs/FILE or runs/FILE_NAME for the flag --config, None without it."""
    if config is None:
        return None
    file, _, name = config.partition(":")
    return f"runs/{Path(file).stem}" + (f"_{name}".replace(":", "_") if name else "")


def main(argv) -> int:
    """Runs a command and returns its exit status.

    Returns:
        0 after success, 2 after a mistake of the user, which is reported in one line, 128 + N after signal N. The
        process exits with status 1, without returning, if a peer process has died.
    """
    try:
        return run(argv)
    except StopRequested as request:  # outside the training loop, which saves and raises `Interrupted`
        return report_stop(request, "Interrupted. Nothing is lost: run the same command again to continue.")
    except OSError as error:
        file = error.filename or "A file"
        return report_error(f"{file} cannot be read or written: {error.strerror or error}.", error)


def run(argv) -> int:
    """Parses the command line and runs the command. JAX is imported late, so that wrong flags are reported at once."""
    started = time.monotonic()
    from configs.help import requested_page
    from configs.loading import FlagError
    from configs.runs import with_own_classes
    from input_pipeline.errors import DataError
    from vidformers.errors import ConfigError

    try:
        if (page := requested_page(argv[1:])) is not None:
            print(page, end="")
            return 0
        command = parse(argv)
        _require_data(command)
        if command.mode in ("train", "eval") or _plans_own_data(command):
            config = with_own_classes(command.config, command.given, command.workdir)
            command = command._replace(config=config)
    except (FlagError, ConfigError, DataError) as error:
        return report_error(str(error), error)

    import jax

    from vidformers.parallel import compilation_cache, processes
    from vidformers.progress import log, reported, silence_libraries
    from vidformers.training.sections import check_sections
    from vidformers.training.stopping import Interrupted

    status = 0
    try:
        if command.process is not None:
            processes.initialise(**command.process)
        silence_libraries()
        check_sections(command.config)
        config, notes = _on_these_devices(command)
        for note in notes if jax.process_index() == 0 else ():
            log(note)
        compilation_cache.enable_compilation_cache(command.workdir)
        mode = MODES[command.mode]
        with reported(f"--mode={command.mode} is at work", shown=jax.process_index() == 0):
            if command.mode == "train" or _plans_own_data(command):
                config = _with_derived_fields(config, command, started)
            getattr(import_module(mode.module), mode.function)(config, command.workdir, **command.flags)
        if command.mode == "train" and jax.process_index() == 0:
            log(f"The command took {(time.monotonic() - started) / 60:.1f} minutes.")
    except Interrupted as stop:
        if jax.process_index() == 0:
            print_line(stop)
        status = 128 + stop.signal
    except (ConfigError, DataError) as error:
        # Skips `finish`, which would tell the peers that this process ends as planned, and leave them waiting in a
        # collective. Without it, the heartbeats of this process are missing, and the peers exit.
        return report_error(str(error), error)
    processes.finish()
    return status


def _require_data(command: Command) -> None:
    """Refuses a new run that would start without data, or in a folder of classes.

    Raises:
        FlagError: the config names no data. A page of commands that have some is printed before.
        DataError: the workdir is in a folder of classes, or the data have no layout.
    """
    from configs.loading import require
    from configs.runs import ways_on
    from input_pipeline.layouts import refuse_inside

    if command.mode == "train" and command.file and not (Path(command.workdir) / "run.json").exists():
        page = ways_on(command.file, command.config, command.given)
        print(page or "", end="", flush=True)
        require(
            page is None,
            f"--config={command.file} names no data, and there is no ./train.csv. Run one of the commands above, or "
            "set --config.data.root to the folder of your data.",
        )
        if command.config["data"]["source"] == "auto":
            refuse_inside(command.workdir, command.config["data"])


def _plans_own_data(command: Command) -> bool:
    """Returns whether `plan` or `summary` describes a run on data that are there. They need no data otherwise."""
    return command.mode in ("plan", "summary") and "data.root" in command.given


def _with_derived_fields(config: dict[str, Any], command: Command, started: float) -> dict[str, Any]:
    """Returns the config of a run on own videos with the fields that are derived once, at its start.

    Args:
        config: the config of the command.
        started: when the command started, by `time.monotonic`.
    """
    from vidformers.progress import log, reported
    from vidformers.training.own import derive
    from vidformers.training.run_json import read_run_json
    from vidformers.training.workdir import open_workdir

    if config["own"]["minutes"] is None:
        return config
    if (Path(command.workdir) / "run.json").exists():
        if "own.minutes" in command.given:
            log("own.minutes is for the start of a run. This run keeps its fields; train.total_steps sets its length.")
            return config | {"own": read_run_json(command.workdir)["config"].get("own", config["own"])}
        return config
    if command.mode == "train":
        open_workdir(command.workdir)  # a folder that cannot be written to is refused before minutes of measurements
    with reported("Measuring decoding and training steps"):
        config, sentences = derive(config, command.given, started)
    if command.mode == "train":
        sentences.append("- run.json holds every field. The same command continues the run with them.")
    for sentence in sentences:
        log(sentence)
    return config


def _on_these_devices(command: Command) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the config and the notes of a command. A mesh of a run that does not fit the devices is left out."""
    from configs.runs import READS_RUN
    from vidformers.parallel.mesh import AXES, fits_devices

    config, mesh = command.config, command.config["mesh"]
    is_given = any(f"mesh.{axis}" in command.given for axis in AXES)
    if command.mode not in READS_RUN or is_given or fits_devices(**mesh):
        return config, command.notes
    shown = " x ".join(f"mesh.{axis}={mesh[axis]}" for axis in AXES)
    note = f"{shown} does not fit the devices here. All of them share the batch instead (mesh.data=-1)."
    return config | {"mesh": {"data": -1, "fsdp": 1, "context": 1}}, (*command.notes, note)


def report_error(message: str, error: Exception) -> int:
    """Prints the message of a mistake and the sentences noted on the error, and returns the exit status."""
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]  # the others are tracebacks
    print_line(" ".join(["vidformers:", message, *notes]), sys.stderr)
    return 2


if __name__ == "__main__":
    install_signal_handlers()
    status = main(sys.argv)
    if (processes := sys.modules.get("vidformers.parallel.processes")) is not None:
        processes.exit_unless_finished(status)  # sys.exit would run JAX's exit handlers, which would wait for all peers
    if status > 128 and not (processes and processes.has_peers()):
        exit_at_once(status)
    sys.exit(status)

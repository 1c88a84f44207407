"""The trainer: `train` prepares a run in its workdir, and runs the training loop."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax

from input_pipeline.clip_lengths import median_seconds
from input_pipeline.files import write_text
from vidformers.attention.fused import record_backends
from vidformers.errors import require
from vidformers.parallel.processes import barrier
from vidformers.parallel.state import convert_layers
from vidformers.pretrained import Pretrained
from vidformers.progress import log, reported
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.loop import TrainingRun, training_loop
from vidformers.training.metrics import MetricWriter
from vidformers.training.patience import Patience
from vidformers.training.reports import data_notes, draw_run, print_report, print_summary
from vidformers.training.setup import Setup, compile_within_memory, initialise, load_weights, set_up
from vidformers.training.split import split_entry, stored_lists, write_split
from vidformers.training.stopping import StopSignal
from vidformers.training.timing import PhaseTimer, Throughput, peak_seconds_per_clip
from vidformers.training.tracing import Trace
from vidformers.training.wandb_run import WandbRun, import_wandb
from vidformers.training.workdir import (
    describe_run,
    differences_from_stored_run,
    open_workdir,
    workdir_lock,
    write_run_json,
)


def train(config: dict, path) -> dict:
    """Trains in the workdir `path`, or continues the run in it.

    No files of the run (run.json, metrics, checkpoints) are written before the step is compiled and fits in memory.

    Args:
        config: the config as nested dicts.
        path: the workdir.
    Returns:
        The metrics of the last evaluation.
    Raises:
        ConfigError, DataError: an invalid config field or data file.
        Interrupted: a signal stopped the run. The state is saved.
    """
    main, phases = jax.process_index() == 0, PhaseTimer()
    with ExitStack() as stack:
        with phases.measure("set-up"):
            lists = stored_lists(path, config["data"])
            setup, workdir = set_up(config, lists=lists), open_workdir(path)
            if main:
                import_wandb(setup.train_config.wandb)  # raises before the run is compiled
                stack.enter_context(workdir_lock(workdir))
            backends = stack.enter_context(record_backends())
            data = _describe_data(setup) | split_entry(setup.pipeline, lists)
            description = describe_run(setup.config, data, backends, setup.total_steps)
            changes = differences_from_stored_run(workdir, description)
            checkpoints = stack.enter_context(Checkpoints(workdir, **setup.config["checkpoint"]))
            restored = checkpoints.restore(setup.abstract)
            pretrained = None if restored else load_weights(setup)
        with phases.measure("compiling"), reported("Compiling the training step", shown=main):
            state, host_state, start = restored or (None, {}, 0)
            _check_start(setup, workdir, start)
            patience = _restore_patience(setup, checkpoints, host_state, start)
            trace = stack.enter_context(closing(_trace(setup, workdir)))
            batches = train_step = None
            if start < setup.total_steps and not patience.is_over:
                # The workers start here, so that they decode the first batches while the step is compiled.
                batches = stack.enter_context(closing(_train_batches(setup, start)))
                train_step = compile_within_memory(setup)
            if not restored:  # after compilation, so that a step that does not fit is refused before any allocation
                state = initialise(setup, pretrained)
            state = convert_layers(state, setup.step_abstract)
            barrier()  # processes compile at different speeds, and the first collective follows
        writer = None
        if main:
            _write_run_files(setup, workdir, description, pretrained)
            writer = stack.enter_context(closing(_metric_writer(setup, workdir, start)))
            _log_start(setup, workdir, start if restored else None, changes)
        with StopSignal() as stop:
            run = TrainingRun(
                setup, workdir, checkpoints, writer, stop, trace, phases, _throughput(setup), patience,
                state=state, host_state=host_state, step=start,
            )  # fmt: skip
            with closing(run), run.saved_on_error(), phases.measure("training"):
                result = training_loop(run, train_step, batches)
                checkpoints.wait()
        if main:
            print_summary(setup, workdir, result, phases.seconds, run.step - start, checkpoints.best)
            draw_run(setup, workdir, result)
    return result.metrics


def _describe_data(setup: Setup) -> dict:
    """Returns the entry `data` of run.json.

    The median length of the clips is the length of a window of a long video, for which the training videos need not be
    there any more.
    """
    description: dict[str, Any] = {"classes": list(setup.pipeline.class_names)}
    for split, manifest in (("train", setup.pipeline.train_manifest), ("val", setup.pipeline.val_manifest)):
        description |= {
            split: manifest.digest,
            f"{split}_list": manifest.path,
            f"{split}_videos": len(manifest.records),
            f"{split}_missing": list(manifest.missing),
            f"{split}_excluded": list(manifest.excluded),
        }
    if jax.process_index() == 0:  # which writes run.json; up to 32 videos are opened
        description["median_seconds"] = median_seconds(setup.pipeline)
    return description


def _check_start(setup: Setup, workdir: Path, start: int) -> None:
    """Raises ConfigError if the checkpoint is beyond the last step."""
    require(
        start <= setup.total_steps,
        f"--workdir={workdir} holds step {start}, beyond the {setup.total_steps} steps of train.total_steps or "
        "train.total_epochs. Raise these, or give another workdir.",
    )


def _restore_patience(setup: Setup, checkpoints: Checkpoints, host_state: dict, start: int) -> Patience:
    """Returns the `Patience` after all evaluations that the restored run has finished."""
    patience = Patience(checkpoints.best, setup.train_config.patience, host_state.get("patience", {}))
    if host_state:
        patience.update(start, checkpoints.read_metrics(start))
    return patience


def _train_batches(setup: Setup, start: int):
    return setup.pipeline.train_batches(
        batch_size=setup.train_config.batch_size,
        seed=setup.config["seed"],
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _trace(setup: Setup, workdir: Path) -> Trace:
    return Trace(workdir / "profile", setup.train_config.profile_steps, setup.total_steps)


def _throughput(setup: Setup) -> Throughput:
    config = setup.train_config
    peak_seconds = peak_seconds_per_clip(setup.make_model, setup.mesh, config.peak_tflops)
    return Throughput(config.batch_size, peak_seconds)


def _metric_writer(setup: Setup, workdir: Path, start: int) -> MetricWriter:
    project = setup.train_config.wandb
    return MetricWriter(workdir, start, None if project is None else WandbRun(workdir, project, setup.config))


def _write_run_files(setup: Setup, workdir: Path, description: dict, pretrained: Pretrained | None) -> None:
    """Writes the lists of a drawn split, `run.json`, and `init.json` if the run starts from pretrained weights."""
    write_split(workdir, setup.pipeline)
    write_run_json(workdir, description)
    if pretrained:
        write_text(workdir / "init.json", pretrained.report())
        print_report(pretrained)


def _log_start(setup: Setup, workdir: Path, resumed_at: int | None, changes: list[str]) -> None:
    if resumed_at == setup.total_steps:
        field = "train.total_steps" if setup.train_config.total_steps is not None else "train.total_epochs"
        log(
            f"The training in {workdir} is finished, at step {resumed_at}. A larger {field} continues it. The last "
            "evaluation follows."
        )
    elif resumed_at is not None:
        log(f"Continues {workdir} at step {resumed_at} of {setup.total_steps}.")
    for sentence in [*changes, *data_notes(setup, workdir)]:
        log(sentence)

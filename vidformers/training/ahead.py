"""Compiles the step of a run for a described topology (`parallel.topology`) or for the devices that are here.

For a topology, a new process compiles the step and ends. So libtpu is free for the next one, and a compilation that is
stopped after the buffer assignment leaves nothing behind.
"""

import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from input_pipeline.errors import DataError
from input_pipeline.text import one_line
from vidformers.errors import ConfigError, require
from vidformers.models.summary import count_kernel_macs
from vidformers.parallel import memory, topology
from vidformers.parallel.account import buffer_bytes
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards
from vidformers.training.evaluate import prediction_step
from vidformers.training.setup import Setup, set_up, trace_training_step

STEPS = ("train", "eval", "predict")
_POLL_SECONDS = 0.3
# Programs after which the search for the largest batch no longer assumes that memory grows linearly with the clips.
# Near the limit it does not, since compilers then rematerialise by themselves.
_LINEAR = 4
_BUFFERS = (
    "*after_optimizations_after_buffer_assignment.txt",
    "*after_optimizations-memory-usage-report.txt",
)


class Request(NamedTuple):
    """A program to compile.

    Attributes:
        config: the config of a run as nested dicts. Its data need not exist.
        topology: one of `topology.TOPOLOGIES`, or None for the devices that are here.
        clips: clips of a micro-batch on each shard of the batch axis. None takes `train.batch_size`, and every field
            of the config is checked as in training.
        step: 'train'; or 'eval' or 'predict', which take one view of each video, with `data.frames` frames.
        until_buffers: stops on described TPUs after the buffer assignment. Then the program has no estimates of cycles.
        clips_per_epoch: the length of an epoch. A program depends on it only by constants of its schedule.
    """

    config: dict
    topology: str | None
    clips: int | None
    step: str = "train"
    until_buffers: bool = False
    clips_per_epoch: int = 100_000


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        bytes: bytes that one device holds while the program runs, by the buffer assignment.
        state_bytes: the part of them that holds the training state, or the parameters in 'eval' and 'predict'.
        mesh: sizes of the axes of the mesh.
        kernel_flops: floating-point operations in the products of Pallas kernels. Compilers do not know them.
        seconds: time of the compilation.
        text: the text of the program for `parallel.account`, or None if the program does not fit in device memory.
        arguments: bytes of the arguments of a training step on one device, without padding: those of each field of the
            training state, and of the `batch`.
    """

    bytes: int
    state_bytes: int
    mesh: dict[str, int]
    kernel_flops: int
    seconds: float
    text: str | None
    arguments: dict[str, int] = {}


def compile_ahead(request: Request) -> Program:
    """Compiles a program, in a new process unless it is for the devices that are here.

    Raises:
        ConfigError: a field of the config or the topology cannot work, or the compiler failed.
    """
    require(request.step in STEPS, f"--step={request.step} must be one of {', '.join(STEPS)}.")
    require(request.clips is None or request.clips >= 1, f"--clips={request.clips} must be at least 1.")
    if request.topology is None:
        fields, program_text = _compile_here(request, None)
        return Program(**fields, text=program_text)
    topology.check_compiler(request.topology)  # before a wait for the lock
    lock = topology.libtpu_lock() if topology.is_tpu(request.topology) else nullcontext()
    with lock, tempfile.TemporaryDirectory(prefix="vidformers-ahead-") as folder:
        process = multiprocessing.get_context("spawn").Process(target=_compile, args=(request, Path(folder)))
        with _without_warnings_of_xla():
            process.start()
        try:
            return _wait(request, process, Path(folder))
        finally:
            process.kill()
            process.join()


def device_memory(name: str | None) -> float:
    """Returns the bytes of memory of one device of a topology, or of one that is here if `name` is None."""
    return memory.bytes_available() if name is None else topology.chip(name).memory


def largest_clips(
    request: Request,
    known: dict[int, int] | None = None,
    tolerance: float = 0.0,
    report: Callable[[int, Program], object] = lambda clips, program: None,
) -> int:
    """Returns the largest number of clips with which the program fits in device memory, or 0 if one clip does not fit.

    Memory grows almost linearly with the clips. So the search extrapolates from two programs, and compiles the batch
    that it finds and the next larger one.

    Args:
        request: the program. Its number of clips is the first to be tried.
        known: {clips: bytes} of programs that have been compiled already. The bytes without clips, of 0, may be a
            guess.
        tolerance: ends the search when the largest number may be larger than the result by this share at most.
        report: called with the clips and the program after each compilation.
    """
    limit = device_memory(request.topology)
    sizes = dict(known or {})
    assert request.clips is not None
    clips: int | None = request.clips
    while clips is not None:
        if clips not in sizes:
            program = compile_ahead(request._replace(clips=clips, until_buffers=True))
            report(clips, program)
            sizes[clips] = program.bytes
        clips = next_clips(sizes, limit, tolerance)
    return max((clips for clips, size in sizes.items() if size <= limit), default=0)


def next_clips(sizes: dict[int, int], limit: float, tolerance: float = 0.0) -> int | None:
    """Returns the number of clips to try next in the search for the largest, or None if the search has ended.

    Args:
        sizes: {clips: bytes} of the programs so far, at least one.
        limit: the bytes of device memory.
        tolerance: that of `largest_clips`.
    """
    fitting = sorted(clips for clips, size in sizes.items() if size <= limit)
    failing = sorted(clips for clips, size in sizes.items() if size > limit)
    below, above = max(fitting, default=0), min(failing, default=None)
    if above is not None and above - below <= 1 + tolerance * below:
        return None
    if len(sizes) == 1:
        return 2 * below if fitting else above // 2
    if above is not None and len(sizes) > _LINEAR:
        return (below + above) // 2
    # The two programs closest to the limit.
    low, high = (fitting[-1], failing[0]) if fitting and failing else fitting[-2:] or failing[:2]
    slope = max((sizes[high] - sizes[low]) / (high - low), 1)
    guess = int(low + (limit - sizes[low]) / slope)
    guess = max(guess, below + 1 + int(tolerance * below))
    if above is not None:
        return min(guess, above - 1)
    return max(min(guess, 3 * below // 2), below + 1) if len(sizes) >= _LINEAR else guess


def _wait(request: Request, process, folder: Path) -> Program:
    """Waits until the process has written its result or, if this suffices, the buffer assignment."""
    while process.is_alive():
        process.join(_POLL_SECONDS)
        if request.until_buffers and topology.is_tpu(request.topology) and _has_buffers(folder):
            started = json.loads((folder / "started.json").read_text(encoding="utf-8"))
            (text,) = (folder / "dump").glob(_BUFFERS[0])
            seconds = time.time() - started.pop("time")
            return Program(
                bytes=buffer_bytes(folder / "dump"), seconds=seconds, text=text.read_text(encoding="utf-8"), **started
            )
    result = folder / "result.json"
    require(result.exists(), f"The compiler for --topology={request.topology} ended with status {process.exitcode}.")
    fields = json.loads(result.read_text(encoding="utf-8"))
    if "error" in fields:
        raise ConfigError(fields["error"])
    text = folder / "program.txt"
    return Program(**fields, text=text.read_text(encoding="utf-8") if text.exists() else None)


@contextmanager
def _without_warnings_of_xla() -> Iterator[None]:
    """Lets processes that start here suppress warnings of XLA, such as those on its own rematerialisation.

    JAX sets the variable to 1 when it is imported. XLA reads it when it is loaded.
    """
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2" if level in (None, "1") else level
    try:
        yield
    finally:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = level or "1"


def _has_buffers(folder: Path) -> bool:
    """Returns whether the compiler has written the buffer assignment to the end."""
    files = [path for pattern in _BUFFERS for path in (folder / "dump").glob(pattern)]
    return len(files) == len(_BUFFERS) and all(time.time() - path.stat().st_mtime > 1 for path in files)


def _compile(request: Request, folder: Path) -> None:
    """Runs in the new process: compiles, and writes result.json and program.txt into the folder."""
    jax.config.update("jax_platforms", "cpu")  # no device of this machine is needed
    jax.config.update("jax_traceback_in_locations_limit", 100)  # the account reads the sublayer from the stack
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        fields, text = _compile_here(request, folder)
        if text is not None:
            (folder / "program.txt").write_text(text, encoding="utf-8")
    except (ConfigError, DataError) as error:
        fields = {"error": str(error)}
    part = folder / "result.part"
    part.write_text(json.dumps(fields), encoding="utf-8")
    part.rename(folder / "result.json")
    os._exit(0)  # described devices can hang in the handlers at exit


def _compile_here(request: Request, folder: Path | None) -> tuple[dict, str | None]:
    """Returns the fields of the program and its text. Files are written into the folder, unless it is None."""
    setup = describe(request)
    state = setup.abstract if request.step == "train" else setup.abstract.eval_parameters
    traced = trace(setup, request)
    fields = {
        "state_bytes": _tree_bytes(state),
        "arguments": _argument_bytes(setup) if request.step == "train" else {},
        "mesh": dict(setup.mesh.shape),
        "kernel_flops": 2 * count_kernel_macs(traced.jaxpr.jaxpr),
    }
    lowered, started = traced.lower(), time.time()
    tpu = request.topology is not None and topology.is_tpu(request.topology)
    options: dict = {}
    if folder is not None:
        (folder / "started.json").write_text(json.dumps(fields | {"time": started}), encoding="utf-8")
        # Without the second option, XLA (jaxlib 0.10) fails at products for which Triton has no tiles.
        options = {"xla_dump_to": str(folder / "dump")} if tpu else {"xla_gpu_enable_triton_gemm": False}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"RESOURCE_EXHAUSTED.*\(([\d.]+)G\) exceeds", str(error))
        if found is None:
            where = "these devices" if request.topology is None else f"--topology={request.topology}"
            raise ConfigError(f"The compiler for {where} failed: {one_line(error)}.") from error
        fields["bytes"] = fields["state_bytes"] + int(float(found.group(1)) * 2**30)
        return fields | {"seconds": time.time() - started}, None
    fields["seconds"] = time.time() - started
    fields["bytes"] = buffer_bytes(folder / "dump") if folder and tpu else memory.program_bytes(compiled)
    return fields, compiled.as_text()


def _tree_bytes(tree) -> int:
    """Returns the bytes of the arrays of a tree on one device."""
    return sum(memory.shard_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _argument_bytes(setup: Setup) -> dict[str, int]:
    """Returns the bytes of each field of the training state and of the batch on one device."""
    data = setup.config["data"]
    video = (setup.train_config.batch_size, data["frames"], data["size"], data["size"], 3)
    batch = abstract_batch(setup.mesh, video, multi_hot=setup.pipeline.multi_hot)
    arguments = setup.abstract._asdict() | {"batch": batch}
    return {name: _tree_bytes(tree) for name, tree in arguments.items()}


def describe(request: Request) -> Setup:
    """Returns the setup of a run on described devices. No data is read.

    The batch has `clips` x `train.accumulate` clips for each shard, unless `clips` is None. Clips are not mixed if a
    micro-batch has one clip.
    """
    config = request.config
    devices = None if request.topology is None else topology.devices(request.topology)
    if request.clips is None:
        return set_up(config, devices=devices, clips_per_epoch=request.clips_per_epoch)
    train = dict(config["train"])
    shards = num_batch_shards(make_mesh(**config["mesh"], devices=devices))
    train["batch_size"] = request.clips * shards * train["accumulate"]
    if train["batch_size"] < 2 * train["accumulate"]:
        train["mixup"] = train["cutmix"] = 0.0
    sections = {"train": train, "data": config["data"] | {"repeats": 1}, "eval": config["eval"] | {"batch_size": None}}
    return set_up(config | sections, devices=devices, clips_per_epoch=request.clips_per_epoch)


def trace(setup: Setup, request: Request) -> jax.stages.Traced:
    """Returns the step of a request, traced for the mesh of the setup."""
    if request.step == "train":
        return trace_training_step(setup)
    protocol = replace(setup.periodic_protocol, frames=None)
    assert request.clips is not None
    data, rows = setup.config["data"], request.clips * num_batch_shards(setup.mesh)
    video = (rows, 1, data["frames"], data["size"], data["size"], 3)
    if request.step == "eval":
        step = setup.evaluator(protocol).step
    else:
        step = prediction_step(setup.graph, setup.mesh, setup.shardings.eval_parameters, protocol)
    batch = abstract_batch(setup.mesh, video, multi_hot=setup.pipeline.multi_hot)
    return step.trace(setup.abstract.eval_parameters, batch)

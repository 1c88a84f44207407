"""Compiles the step of a run for a described topology (`parallel.topology`), in a process of its own.

The process ends after the compilation. So libtpu is free for the next one, and a compilation that is stopped after the
buffer assignment leaves nothing behind.
"""

import json
import multiprocessing
import os
import re
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax

from vidformers.errors import ConfigError, require
from vidformers.parallel import memory, topology
from vidformers.parallel.account import buffer_bytes
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards
from vidformers.training.setup import Setup, lower_training_step, set_up

STEPS = ("train", "eval")
_CLIPS_PER_EPOCH = 100_000  # a program depends on the length of an epoch only by constants of its schedule
_POLL_SECONDS = 0.3
_BUFFERS = (
    "*after_optimizations_after_buffer_assignment.txt",
    "*after_optimizations-memory-usage-report.txt",
)


class Request(NamedTuple):
    """A program to compile.

    Attributes:
        config: the config of a run as nested dicts. Its data need not exist. `train.batch_size` is ignored.
        topology: one of `topology.TOPOLOGIES`.
        clips: clips of a micro-batch on each shard of the batch axis.
        step: 'train', or 'eval', which evaluates one view.
        until_buffers: stops on TPUs after the buffer assignment. Then the program has no estimates of cycles.
    """

    config: dict
    topology: str
    clips: int
    step: str = "train"
    until_buffers: bool = False


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        bytes: bytes that one device holds while the program runs, by the buffer assignment.
        mesh: sizes of the axes of the mesh.
        seconds: time of the compilation.
        text: the text of the program for `parallel.account`, or None if the program does not fit in device memory.
    """

    bytes: int
    mesh: dict[str, int]
    seconds: float
    text: str | None


def compile_ahead(request: Request) -> Program:
    """Compiles a program in a new process.

    Raises:
        ConfigError: a field of the config or the topology cannot work, or the compiler failed.
    """
    topology.chip(request.topology)
    require(request.step in STEPS, f"--step={request.step} must be one of {', '.join(STEPS)}.")
    require(request.clips >= 1, f"--clips={request.clips} must be at least 1.")
    lock = topology.libtpu_lock() if topology.is_tpu(request.topology) else nullcontext()
    with lock, tempfile.TemporaryDirectory(prefix="vidformers-ahead-") as folder:
        process = multiprocessing.get_context("spawn").Process(target=_compile, args=(request, Path(folder)))
        process.start()
        try:
            return _wait(request, process, Path(folder))
        finally:
            process.kill()
            process.join()


def _wait(request: Request, process, folder: Path) -> Program:
    """Waits until the process has written its result or, if this suffices, the buffer assignment."""
    while process.is_alive():
        process.join(_POLL_SECONDS)
        if request.until_buffers and topology.is_tpu(request.topology) and _has_buffers(folder):
            started = json.loads((folder / "started.json").read_text(encoding="utf-8"))
            (text,) = (folder / "dump").glob(_BUFFERS[0])
            seconds = time.time() - started["time"]
            return Program(buffer_bytes(folder / "dump"), started["mesh"], seconds, text.read_text(encoding="utf-8"))
    result = folder / "result.json"
    require(result.exists(), f"The compiler for --topology={request.topology} ended with status {process.exitcode}.")
    fields = json.loads(result.read_text(encoding="utf-8"))
    if "error" in fields:
        raise ConfigError(fields["error"])
    text = folder / "program.txt"
    return Program(**fields, text=text.read_text(encoding="utf-8") if text.exists() else None)


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
    except ConfigError as error:
        fields = {"error": str(error)}
    part = folder / "result.part"
    part.write_text(json.dumps(fields), encoding="utf-8")
    part.rename(folder / "result.json")
    os._exit(0)  # described devices can hang in the handlers at exit


def _compile_here(request: Request, folder: Path) -> tuple[dict, str | None]:
    setup = describe(request)
    mesh = dict(setup.mesh.shape)
    lowered = lower(setup, request)
    tpu = topology.is_tpu(request.topology)
    (folder / "started.json").write_text(json.dumps({"time": time.time(), "mesh": mesh}), encoding="utf-8")
    started = time.perf_counter()
    options = {"xla_dump_to": str(folder / "dump")} if tpu else {"xla_gpu_enable_triton_gemm": False}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"RESOURCE_EXHAUSTED.*\(([\d.]+)G\) exceeds", str(error))
        if found is None:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"The compiler for --topology={request.topology} failed: {reason}") from error
        arguments = sum(memory.shard_bytes(leaf) for leaf in jax.tree.leaves(setup.abstract))
        needed = arguments + int(float(found.group(1)) * 2**30)
        return {"bytes": needed, "mesh": mesh, "seconds": time.perf_counter() - started}, None
    seconds = time.perf_counter() - started
    needed = buffer_bytes(folder / "dump") if tpu else memory.program_bytes(compiled)
    return {"bytes": needed, "mesh": mesh, "seconds": seconds}, compiled.as_text()


def describe(request: Request) -> Setup:
    """Returns the setup of a run on described devices. No data is read.

    The batch has `clips` x `train.accumulate` clips for each shard. Clips are not mixed if a micro-batch has one clip.
    """
    config = request.config
    devices = topology.devices(request.topology)
    train = dict(config["train"])
    shards = num_batch_shards(make_mesh(**config["mesh"], devices=devices))
    train["batch_size"] = request.clips * shards * train["accumulate"]
    if train["batch_size"] < 2 * train["accumulate"]:
        train["mixup"] = train["cutmix"] = 0.0
    sections = {"train": train, "data": config["data"] | {"repeats": 1}, "eval": config["eval"] | {"batch_size": None}}
    return set_up(config | sections, devices=devices, clips_per_epoch=_CLIPS_PER_EPOCH)


def lower(setup: Setup, request: Request):
    """Returns the step of a request, lowered for the mesh of the setup."""
    if request.step == "train":
        return lower_training_step(setup)
    protocol = setup.periodic_protocol
    data, rows = setup.config["data"], request.clips * num_batch_shards(setup.mesh)
    video = (rows, 1, protocol.frames or data["frames"], data["size"], data["size"], 3)
    step = setup.evaluator(protocol).step
    return step.lower(setup.abstract.eval_parameters, abstract_batch(setup.mesh, video))

"""Runs of several processes: initialisation, all-gather of strings, and shutdown.

If one process dies, its peers can hang in the next collective, and a scheduler sees a run that is alive. Only the first
collective on CPUs has a short timeout, see `barrier`. JAX notices a dead process only after its own heartbeat timeout,
and then aborts the peers with a stack trace. Therefore a thread in each process (`_watch_peers`) writes a heartbeat to
JAX's key-value store every 3 seconds and reads the heartbeats of its peers. If a peer misses 9 heartbeats in a row, the
thread ends the process with a message and status 1.

The key-value store is unavailable once process 0 has exited, and JAX may then abort the other processes before the
thread ends them. `_on_sigabrt`, a C handler of SIGABRT, then prints why the process ended and how to continue.

A process that ends as planned calls `finish`, so that its peers do not treat it as dead. A process that ends otherwise
calls `exit_unless_finished`, since the exit handlers of JAX wait for all peers.

Two tests in tests/parallel/test_processes.py kill processes:
`test_when_process_0_is_killed_the_other_ends_with_a_message` and
`test_when_process_1_is_killed_the_other_ends_both_resume_and_a_signal_to_one_stops_both`.
"""

import ctypes
import itertools
import os
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the only way to the key-value store; Orbax uses the same private module

from input_pipeline.text import one_line
from vidformers.errors import ConfigError, require

_HEARTBEAT_SECONDS = 3
_MAX_MISSED_HEARTBEATS = 8
_HEARTBEATS = "vidformers/heartbeats"  # prefix of the keys; the index of the process follows
_FINISHED = "finished"  # the heartbeat of a process that has called `finish`
_BARRIER_SECONDS = 3600  # some processes compile much longer than others
# Lower-case substrings that mark an error as a failed collective.
_PEER_ERROR_WORDS = ("gloo", "nccl", "unavailable", "deadline_exceeded", "coordination", "connection")
# Unique numbers for keys and barriers. They agree across processes, because all processes call `barrier` and
# `allgather_strings` in the same order.
_collective_ids = itertools.count()
_finishing = threading.Event()
_is_initialised = False


def initialise(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects this process with its peers.

    Without arguments, JAX detects the peers from the environment of a TPU pod, SLURM or Kubernetes. After this call,
    the process exits with status 1 if a peer dies without calling `finish`. Otherwise its collectives would hang.

    Args:
        coordinator: HOST:PORT of process 0, reachable from all processes.
        processes: the number of processes.
        process: the index of this process, from 0.
    Raises:
        ConfigError: an argument is wrong, or the peers cannot be found or reached.
    """
    global _is_initialised
    if coordinator is not None and processes is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        require(
            host != "" and port.isdigit(),
            f"--coordinator={coordinator} must be HOST:PORT, the address of process 0.",
        )
        require(
            0 <= process < processes,
            f"--process={process} must be at least 0 and below --processes={processes}.",
        )
    else:
        require(
            coordinator is None and processes is None and process is None,
            "--coordinator, --processes and --process are given together or not at all.",
        )
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        # 60 s are longer than the 27 s after which `_watch_peers` ends the process, with a clearer message than JAX's.
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed=true: the processes of this run cannot find each other ({one_line(error)}). Give "
            "--coordinator, --processes and --process if there is no scheduler."
        ) from None
    _is_initialised = True
    # JAX has installed the handler of its preemption service, which swallows SIGTERM: the run would not stop and save.
    signal.signal(signal.SIGTERM, sigterm_handler)
    sys.excepthook = _exit_on_uncaught_error
    if jax.process_count() > 1:
        # A handler installed with signal.signal would never run, because abort() does not return to the interpreter.
        # JAX calls no Python function before it aborts.
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_sigabrt)
        _watcher.start()


def is_distributed() -> bool:
    """Returns whether `initialise` has been called, as it is with --distributed=true."""
    return _is_initialised


def barrier() -> None:
    """Waits for at most an hour until all processes have called this function.

    Needed before the first collective: on CPUs, the first collective waits for its peers for only 30 seconds, and some
    processes compile much longer than others.
    """
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"vidformers/barriers/{next(_collective_ids)}", _BARRIER_SECONDS * 1000)


def allgather_strings(text: str) -> list[str]:
    """Returns the strings that the processes pass as `text`, ordered by process index."""
    if jax.process_count() == 1:
        return [text]
    prefix = f"vidformers/strings/{next(_collective_ids)}"
    _store().key_value_set(f"{prefix}/{jax.process_index():06}", text)
    barrier()
    return [value for _, value in sorted(_store().key_value_dir_get(prefix))]


def finish() -> None:
    """Tells the peers that this process ends as planned: after success, or after all processes agreed to stop."""
    if has_peers():
        _finishing.set()
        _watcher.join(timeout=10)  # otherwise the thread could overwrite `_FINISHED` with a heartbeat
        _write_heartbeat(_FINISHED)


def has_peers() -> bool:
    """Returns whether this process runs together with others."""
    return _is_initialised and jax.process_count() > 1


def exit_unless_finished(status: int) -> None:
    """Calls `os._exit(status)` if there are peers and `finish` was not called. Otherwise returns.

    A normal exit would run JAX's exit handlers, which would wait for all peers.
    """
    if not has_peers() or _finishing.is_set():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_on_uncaught_error(kind, error, trace) -> None:
    """Ends the process after an uncaught exception. A collective that failed is reported without a traceback."""
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in _PEER_ERROR_WORDS):
        print(
            f"vidformers: A collective with the other processes has failed ({one_line(error)}). If one of them has "
            "ended, run the same commands again to continue.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(kind, error, trace)
    exit_unless_finished(1)


def _exit_now(message: str) -> NoReturn:
    """Ends the process with a message and status 1, from any thread or signal handler."""
    os.write(2, f"vidformers: {message} Run the same commands again to continue.\n".encode())
    os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_sigabrt(_) -> None:
    _exit_now("JAX has ended this process for the reason above, most likely because another process has exited.")


def _watch_peers() -> None:
    """Writes the heartbeats of this process, and ends it if a peer misses too many heartbeats.

    Counts missed heartbeats, not seconds, so that a suspended process does not declare its peers dead when it resumes.
    """
    index, count = jax.process_index(), jax.process_count()
    last_seen: dict[str, str | None] = {f"{_HEARTBEATS}/{peer}": None for peer in range(count) if peer != index}
    missed = dict.fromkeys(last_seen, 0)
    for number in itertools.count():
        if _finishing.is_set():
            return
        try:
            _write_heartbeat(str(number))
            heartbeats = dict(_store().key_value_dir_get(_HEARTBEATS))
        except jax.errors.JaxRuntimeError:  # the key-value store, which process 0 holds, does not answer
            heartbeats = {}
        for peer, last in last_seen.items():
            heartbeat = heartbeats.get(peer, last)
            missed[peer] = 0 if heartbeat != last or heartbeat == _FINISHED else missed[peer] + 1
            last_seen[peer] = heartbeat
            if missed[peer] > _MAX_MISSED_HEARTBEATS:
                seconds = missed[peer] * _HEARTBEAT_SECONDS
                _exit_now(
                    f"Process {peer.rpartition('/')[2]} of {count} has exited or has not responded for {seconds} s, so "
                    "this process exits too."
                )
        _finishing.wait(_HEARTBEAT_SECONDS)


def _write_heartbeat(value: str) -> None:
    _store().key_value_set(f"{_HEARTBEATS}/{jax.process_index()}", value, allow_overwrite=True)


def _store() -> Any:
    """Returns the client of the key-value store, which process 0 holds."""
    return distributed.global_state.client


_watcher = threading.Thread(target=_watch_peers, name="watch-peers", daemon=True)

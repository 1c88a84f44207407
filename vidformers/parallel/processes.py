"""One run of several processes: how they join, exchange strings, and end.

Collectives have no timeout. If one process dies, its peers wait in the next collective for ever, and a scheduler sees
a run that is alive. JAX notices a dead process only after its own heartbeat timeout, and then aborts the peers with a
stack trace. Therefore a thread in each process (`_watch_peers`) writes a heartbeat to JAX's key-value store every 3
seconds, reads those of its peers, and ends the process with a message and status 1 after 8 missed heartbeats. The
key-value store dies with process 0, and JAX may then abort the others first: `_on_abort`, a C handler of SIGABRT, adds
the message. A process that ends as planned calls `finish`, so that its peers do not take its silence for death. A
process that ends otherwise leaves through `exit_process`, since the exit handlers of JAX wait for all peers. Two tests
in tests/parallel/test_processes.py kill processes: `test_when_process_0_is_killed_...` and
`test_when_process_1_is_killed_...`.
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

from vidformers.errors import ConfigError, require

_HEARTBEAT_SECONDS = 3
_MAX_MISSED_HEARTBEATS = 8
_HEARTBEATS, _FINISHED = "vidformers/heartbeats", "finished"  # a prefix of keys, and the last value of a process
_BARRIER_SECONDS = 3600  # a process may compile for long while others wait
_PEER_ERRORS = ("gloo", "nccl", "unavailable", "deadline_exceeded", "coordination", "connection")
_barrier_numbers = itertools.count()  # all processes call `barrier` and `allgather_strings` in the same order
_finishing = threading.Event()
_initialized = False


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process with its peers.

    Without arguments, JAX detects the peers from the environment of a TPU pod, SLURM or Kubernetes. After this call,
    the process exits with status 1 if a peer dies without calling `finish`. Otherwise its collectives would hang.

    Args:
        coordinator: HOST:PORT of process 0, reachable from all processes.
        processes: the number of processes.
        process: the index of this process, from 0.
    Raises:
        ConfigError: an argument is wrong, or the peers cannot be found or reached.
    """
    global _initialized
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
        # The timeout is above that of this module, whose message is the better one.
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ConfigError(
            f"--distributed=true: the processes of this run cannot find each other ({reason}). Give --coordinator, "
            "--processes and --process if there is no scheduler."
        ) from None
    _initialized = True
    signal.signal(signal.SIGTERM, sigterm_handler)  # JAX has replaced it by its preemption service
    sys.excepthook = _exit_on_uncaught_error
    if jax.process_count() > 1:
        # Python's own handlers run in the main thread, to which an abort does not return. JAX calls no Python
        # function before it aborts.
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)
        _watcher.start()


def is_distributed() -> bool:
    """Returns whether `initialize` has joined this process with others."""
    return _initialized


def barrier() -> None:
    """Waits until all processes have called this function, for an hour at most.

    Needed before the first collective: on CPUs, a collective waits for 30 seconds only, and some processes compile much
    longer than others.
    """
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"vidformers/barriers/{next(_barrier_numbers)}", _BARRIER_SECONDS * 1000)


def allgather_strings(text: str) -> list[str]:
    """Returns the strings that all processes pass, ordered by process."""
    if jax.process_count() == 1:
        return [text]
    prefix = f"vidformers/strings/{next(_barrier_numbers)}"
    _store().key_value_set(f"{prefix}/{jax.process_index():06}", text)
    barrier()
    return [value for _, value in sorted(_store().key_value_dir_get(prefix))]


def finish() -> None:
    """Tells the peers that this process ends as planned, after a success or a stop on which all agreed."""
    if _initialized and jax.process_count() > 1:
        _finishing.set()
        _watcher.join(timeout=10)
        _write_heartbeat(_FINISHED)


def exit_process(status: int) -> None:
    """Ends the process with `status` if it has peers and has not called `finish`. Otherwise returns.

    The exit handlers of JAX, which this function skips, would wait for the peers.
    """
    if not _initialized or jax.process_count() == 1 or _finishing.is_set():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_on_uncaught_error(kind, error, trace) -> None:
    """Ends the process after an uncaught exception; a collective that failed is reported without a traceback."""
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in _PEER_ERRORS):
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        print(
            f"vidformers: A collective with the other processes has failed ({reason}). If one of them has ended, run "
            "the same commands again to continue.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(kind, error, trace)
    exit_process(1)


def _abort(message: str) -> NoReturn:
    """Ends the process from any thread or signal handler."""
    os.write(2, f"vidformers: {message} Run the same commands again to continue.\n".encode())
    os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_) -> None:
    _abort("JAX has ended this process for the reason above, most likely because another process is gone.")


def _watch_peers() -> None:
    """Writes the heartbeats of this process and ends it when those of a peer stop.

    Time is counted in heartbeats of this process: after it was suspended, it gives its peers the full time again.
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
        except jax.errors.JaxRuntimeError:  # process 0, which holds the key-value store, does not answer
            heartbeats = {}
        for peer, last in last_seen.items():
            heartbeat = heartbeats.get(peer, last)
            missed[peer] = 0 if heartbeat != last or heartbeat == _FINISHED else missed[peer] + 1
            last_seen[peer] = heartbeat
            if missed[peer] > _MAX_MISSED_HEARTBEATS:
                _abort(f"Process {peer.rpartition('/')[2]} of {count} is gone, so this process ends too.")
        _finishing.wait(_HEARTBEAT_SECONDS)


def _write_heartbeat(value: str) -> None:
    _store().key_value_set(f"{_HEARTBEATS}/{jax.process_index()}", value, allow_overwrite=True)


def _store() -> Any:
    """Returns the client of the key-value store, which process 0 holds."""
    return distributed.global_state.client


_watcher = threading.Thread(target=_watch_peers, name="watch-peers", daemon=True)

"""One run of many processes: how they find each other, and how they end when one of them is gone."""

import ctypes
import itertools
import os
import signal
import sys
import threading
import traceback

import jax
from jax._src import distributed  # the key-value store of JAX, to which Orbax knows no public way either

from vidformers.errors import ConfigError, require

_BEAT_SECONDS = 3
_LOST_BEATS = 8  # of one's own without one of another, after which that one is gone
_KEY, _LEFT = "vidformers/beats", "left"
_PATIENCE_SECONDS = 3600  # of processes that wait for one that compiles
_LOSS = ("gloo", "nccl", "unavailable", "deadline_exceeded", "coordination", "connection")  # of an exchange that failed
_numbers = itertools.count()
_parting = threading.Event()

is_initialized = False


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes one run of the processes that a TPU pod, SLURM or Kubernetes started, or of those at given addresses.

    From here on this process ends, with a sentence and status 1, when another one does so without `leave`: its
    collectives would wait for that one for ever.

    Args:
        coordinator: HOST:PORT of process 0, as all can reach it; None where the environment tells.
        processes, process: how many there are, and which this one is, from 0.
    Raises:
        ConfigError: neither the environment nor the arguments say where the others are, or they cannot be reached.
    """
    global is_initialized
    given = [value is not None for value in (coordinator, processes, process)]
    require(all(given) or not any(given), "--coordinator, --processes and --process are given together or not at all.")
    if all(given):
        host, _, port = coordinator.rpartition(":")
        require(host and port.isdigit(), f"--coordinator={coordinator} must be HOST:PORT.")
        require(0 <= process < processes, f"--process={process} must be at least 0 and below --processes={processes}.")
    before = signal.getsignal(signal.SIGTERM)
    try:
        # JAX too ends a process that misses another, later than this module and without a sentence.
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=60)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ConfigError(
            "--distributed=true: the processes of this run cannot find each other; give --coordinator, "
            f"--processes and --process where no scheduler tells ({reason})."
        ) from None
    is_initialized = True
    signal.signal(signal.SIGTERM, before)  # which JAX has taken for its own service, and swallows
    if jax.process_count() > 1:
        _explain_aborts()
        _watcher.start()


def barrier() -> None:
    """Waits until all processes are here. Some compile far slower than others, and what first exchanges something on
    CPUs waits for half a minute only."""
    if jax.process_count() > 1:
        distributed.global_state.client.wait_at_barrier(
            f"vidformers/meetings/{next(_numbers)}", _PATIENCE_SECONDS * 1000
        )


def allgather_strings(text: str) -> list[str]:
    """What each process tells at this place, this one `text`, in their order."""
    if jax.process_count() == 1:
        return [text]
    client, place = distributed.global_state.client, f"vidformers/told/{next(_numbers)}"
    client.key_value_set(f"{place}/{jax.process_index():06}", text)
    barrier()
    return [told for _, told in sorted(client.key_value_dir_get(place))]


def finish() -> None:
    """All processes end here, after a success or a stop that they agreed on: none need follow another."""
    if is_initialized and jax.process_count() > 1:
        _parting.set()
        _watcher.join(timeout=10)
        distributed.global_state.client.key_value_set(f"{_KEY}/{jax.process_index()}", _LEFT, allow_overwrite=True)


def exit_process(code: int) -> None:
    """The end of a process of many with status `code`. Where they did not `part` it does not return: JAX would wait for
    processes that never come."""
    if jax.process_count() == 1 or _parting.is_set():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report_failure(error: Exception) -> int:
    """Says why this process of many ends; returns its status."""
    if isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error).lower() for word in _LOSS):
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        print(
            f"vidformers: An exchange with the other processes has failed ({reason}). If one of them has ended, the "
            "same commands continue the run.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    return 1


def abort(sentence: str) -> None:
    """Ends this process, which cannot go on without another."""
    os.write(2, f"vidformers: {sentence} The same commands continue the run.\n".encode())
    os._exit(1)


def _explain_aborts() -> None:
    """JAX aborts a process as soon as it finds process 0 gone, with a stack trace; a sentence ends it.

    It gives no other chance: its callback cannot be called from Python, and Python's own signal handlers wait for the
    main thread, which an abort does not return to.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(_):
        abort("JAX has ended this process for the reason above, most likely that another one is gone.")

    _explain_aborts.handler = end  # lives as long as the process
    ctypes.CDLL(None).signal(int(signal.SIGABRT), end)


def _watch() -> None:
    """Tells the others that this process lives, and ends it when one of them does not say so any more.

    Counted in one's own beats, so that a process that was suspended does not miss the others when it wakes.
    """
    client, own = distributed.global_state.client, jax.process_index()
    heard = {f"{_KEY}/{other}": [None, 0] for other in range(jax.process_count()) if other != own}
    beat = 0
    while not _parting.is_set():
        beat += 1
        try:
            client.key_value_set(f"{_KEY}/{own}", str(beat), allow_overwrite=True)
            said = dict(client.key_value_dir_get(_KEY))
        except jax.errors.JaxRuntimeError:  # process 0, which keeps what all say, does not answer
            said = {}
        for other, (last, silent) in heard.items():
            now = said.get(other, last)
            heard[other] = [now, 0 if now != last or now == _LEFT else silent + 1]
            if silent > _LOST_BEATS:
                abort(f"Process {other.rpartition('/')[2]} of {jax.process_count()} is gone, and this one ends too.")
        _parting.wait(_BEAT_SECONDS)


_watcher = threading.Thread(target=_watch, name="hosts", daemon=True)

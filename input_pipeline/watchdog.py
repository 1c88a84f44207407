"""Ends processes in which a call of FFmpeg does not return."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator

from input_pipeline.text import printable


@dataclasses.dataclass
class _Call:
    """A call that decodes the video `name` and may take `limit` seconds; it has been seen for `observed` seconds."""

    name: str
    limit: float
    observed: float = 0.0


_calls: dict[int, _Call] = {}  # thread -> its current call


@contextlib.contextmanager
def watch_call(name: str, limit: float) -> Iterator[None]:
    """Lets `end_if_stuck` watch the decoding of the video `name` by this thread, which may take `limit` seconds."""
    thread = threading.get_ident()
    _calls[thread] = _Call(name, limit)
    try:
        yield
    finally:
        del _calls[thread]


def end_if_stuck(grace_seconds: float = 30.0, held_seconds: float = 120.0) -> None:
    """Ends this process, with one sentence on stderr, when a Video exceeds its limit by `grace_seconds`.

    For processes that only decode. Between packets a Video checks its limit itself. The watchdog is for calls of FFmpeg
    that do not return. FFmpeg runs without the interpreter's lock, so that the watching thread can run. A loop in C
    that keeps the lock is ended by SIGPROF, without a sentence, when the process has computed for `held_seconds` and no
    other thread has run. Time during which the process is stopped or suspended does not count.
    """
    tick = min(0.5, grace_seconds / 2)

    def watch():
        while True:
            signal.setitimer(signal.ITIMER_PROF, held_seconds)
            time.sleep(tick)
            for call in list(_calls.values()):
                call.observed += tick
                if call.observed > call.limit + grace_seconds:
                    seconds = call.limit + grace_seconds
                    sentence = (
                        f"vidformers: {call.name}: decoding hangs for over {seconds:g} s; the process ends. Leave the "
                        "video out with data.exclude. If it is only slow, raise data.limit_seconds, or make clips that "
                        "decode fast with python -m input_pipeline.prepare."
                    )
                    os.write(2, printable(sentence).encode() + b"\n")
                    os._exit(1)

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    threading.Thread(target=watch, name="end-if-stuck", daemon=True).start()

"""The profiler trace of a few training steps."""

import jax

from vidformers.errors import require
from vidformers.progress import log


class Trace:
    """Traces the steps from `first` to `last` with the JAX profiler, for Perfetto and XProf.

    The trace also contains everything that happens between these steps, such as an evaluation.

    Args:
        folder: the trace is written to `plugins/profile/DATE/` below it. In a run of several processes, each process
            writes to its own folder below `folder`.
        steps: (first, last), counted from 1, or empty for no trace. A run that is resumed after `first` traces nothing.
        total: the number of steps of the run.

    Raises:
        ConfigError: the run does not have these steps.
    """

    def __init__(self, folder, steps, total: int):
        several = jax.process_count() > 1
        self.folder, self.active = folder / f"process{jax.process_index()}" if several else folder, False
        self.first, self.last = steps or (0, 0)
        require(
            not steps or 1 <= self.first <= self.last <= total,
            f"train.profile_steps={tuple(steps)} must be a first and a last step from 1 to {total}.",
        )

    def before(self, step: int, state) -> None:
        """Starts the trace if `step` is its first step. `state` is the input of `step`."""
        if step == self.first:
            jax.block_until_ready(state)  # otherwise the trace would contain the end of the previous step
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.active = True

    def after(self, step: int, state) -> None:
        """Ends the trace if `step` is its last step. `state` is the output of `step`."""
        if self.active and step == self.last:
            jax.block_until_ready(state)
            self.close()
            if jax.process_index() == 0:
                steps = f"Step {self.first} is" if self.first == self.last else f"Steps {self.first} to {self.last} are"
                log(f"{steps} traced in {self.folder}.")

    def close(self) -> None:
        """Ends the trace if one is active."""
        if self.active:
            self.active = False
            jax.profiler.stop_trace()

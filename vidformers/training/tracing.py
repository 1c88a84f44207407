"""A trace of a few training steps: what host and devices did, and when."""

import jax

from vidformers.errors import require
from vidformers.progress import log


class Trace:
    """Traces the steps `first` to `last`, and what is between them, into a folder, for Perfetto and XProf.

    Args:
        folder: for `plugins/profile/DATE/`; of many processes each has a folder in it.
        steps: (first, last), counted from 1; empty for none. A run that continues after the first traces none.
        total: steps of the run.
    Raises:
        ConfigError: steps that the run has not.
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
        """Before `step`, which takes `state`."""
        if step == self.first:
            jax.block_until_ready(state)  # steps before are not traced
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.active = True

    def after(self, step: int, state) -> None:
        if self.active and step == self.last:
            jax.block_until_ready(state)
            self.close()
            if jax.process_index() == 0:
                steps = f"Step {self.first} is" if self.first == self.last else f"Steps {self.first} to {self.last} are"
                log(f"{steps} traced in {self.folder}.")

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self.active:
            self.active = False
            jax.profiler.stop_trace()

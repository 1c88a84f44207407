"""What fits in the time: seconds of a clip and of a step, the largest model, and the number of steps."""

import math
from collections.abc import Callable
from typing import NamedTuple

# Shares of the time for training that are left for what the measurement did not see. Steps on the cores that decode,
# and on which other programs start and end, vary more: they took 20 % longer than measured beside a test suite.
_MARGIN, _MARGIN_ON_CORES = 0.1, 0.25
_END_SECONDS = 8.0  # the last checkpoint, and the pictures that a run draws at its end
_EVALUATION_SECONDS = 1.0  # of each evaluation, besides its videos: a checkpoint is saved before
_EVALUATION_SHARE = 0.15  # of the time for training, at most
_EVALUATIONS = 10
_MIN_STEPS = 50  # with fewer, no model learns
_REPEATS = (1, 2, 4)


class Costs(NamedTuple):
    """What was measured on this machine.

    Attributes:
        decode: seconds in which one core decodes the frames of a clip.
        augment: seconds in which one core crops and augments them.
        cores: cores of the machine.
        uses_cores: whether the training steps run on the same cores, and not on an accelerator.
        rate: multiply-adds of a training step per second. Those of its backward pass count.
    """

    decode: float
    augment: float
    cores: int
    uses_cores: bool
    rate: float

    def step_seconds(self, macs: float, batch: int, repeats: int) -> float:
        """Returns the seconds of a step and of making its batch.

        Args:
            macs: multiply-adds of the step.
            batch: clips of the step.
            repeats: clips that are made of the decoded frames of one video.
        """
        data = batch * (self.augment + self.decode / repeats) / self.cores
        train = macs / self.rate
        # On the same cores, the work adds up. An accelerator trains while the cores decode.
        return train + data if self.uses_cores else max(train, data)

    def repeats(self, macs: float, batch: int) -> int:
        """Returns the fewest clips of one decoded video with which decoding takes no longer than the rest of a step.

        At least four different videos stay in a batch.
        """
        options = [count for count in _REPEATS if batch % count == 0 and batch // count >= 4] or [1]
        for count in options:
            decode = batch * self.decode / count / self.cores
            if decode <= macs / self.rate + self.uses_cores * batch * self.augment / self.cores:
                return count
        return options[-1]

    def workers(self, macs: float, batch: int, repeats: int) -> int:
        """Returns the number of decoding processes that keep up with the steps, at most one per core.

        It is twice what the mean time of a clip asks for, since videos differ and other programs take their share.
        """
        core_seconds = batch * (self.augment + self.decode / repeats)
        needed = core_seconds / self.step_seconds(macs, batch, repeats)
        return max(1, min(self.cores, math.ceil(2 * needed)))


class Length(NamedTuple):
    """The length of a run.

    Attributes:
        steps: training steps.
        evaluations: evaluations on the way, the last one included.
        seconds: the estimated time of both.
    """

    steps: int
    evaluations: int
    seconds: float


def largest_affordable(
    count: int, step_seconds: Callable[[int], float], steps: Callable[[int], int], seconds: float
) -> int:
    """Returns the position of the largest of `count` sizes whose training fits in the time, or 0 if none does.

    Args:
        count: the number of sizes. The first is the smallest.
        step_seconds: position -> seconds of a step.
        steps: position -> steps that a model of this size needs.
        seconds: the time for training.
    """
    chosen = 0
    for position in range(1, count):  # in this order, since `step_seconds` traces the model
        if steps(position) * step_seconds(position) > seconds:
            break
        chosen = position
    return chosen


def margin(uses_cores: bool) -> float:
    """Returns the share of the time for training that is left unplanned.

    Args:
        uses_cores: that of `Costs`.
    """
    return _MARGIN_ON_CORES if uses_cores else _MARGIN


def length(
    seconds: float, step_seconds: float, eval_seconds: float, unplanned: float, steps: int | None = None
) -> Length:
    """Returns how many steps and evaluations fit in the time.

    The time is kept by this number of steps. A clock in the training loop would make the result of a run depend on the
    load of the machine, and a run that was stopped could not continue exactly.

    Args:
        seconds: the time that is left for training and evaluation, to the end of the run.
        step_seconds: seconds of a step.
        eval_seconds: seconds of one evaluation of all validation videos.
        unplanned: see `margin`.
        steps: the given number of steps, or None.
    """
    left = max(seconds - _END_SECONDS, 0.0) * (1 - unplanned)
    each = eval_seconds + _EVALUATION_SECONDS
    evaluations = max(1, min(_EVALUATIONS, int(_EVALUATION_SHARE * left / each)))
    if steps is None:
        steps = rounded_down(max(_MIN_STEPS, int((left - evaluations * each) / step_seconds)))
    evaluations = min(evaluations, steps)
    return Length(steps, evaluations, steps * step_seconds + evaluations * each)


def shortest(step_seconds: float, eval_seconds: float, unplanned: float) -> float:
    """Returns the seconds of the shortest run, with one evaluation. The arguments are those of `length`."""
    return (_MIN_STEPS * step_seconds + eval_seconds + _EVALUATION_SECONDS) / (1 - unplanned) + _END_SECONDS


def rounded_down(steps: int) -> int:
    """Returns a number of steps with at most two digits that are not 0.

    A run that is started again on the same machine then mostly has the same number, and finds its compiled step.
    """
    unit = 10 ** max(len(str(steps)) - 2, 0)
    return steps // unit * unit
